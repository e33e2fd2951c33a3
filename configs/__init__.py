"""One file per thing that can be trained: get_config(arg) -> ConfigDict."""
