"""Offline: a corpus folder (or a synthesiser) in, TFRecord shards with side indexes out."""
