"""The tables of the English normaliser: months, currencies, units, abbreviations, acronyms and symbols."""

from __future__ import annotations


def _pairs(text: str) -> dict[str, str]:
    """Lines of `key: value; key: value`."""
    pairs = (item.split(":", 1) for item in text.replace("\n", ";").split(";") if item.strip())
    return {key.strip(): value.strip() for key, value in pairs}


MONTH_NAMES = tuple("january february march april may june july august september october november december".split())
MONTHS = {**{name[:3]: name for name in MONTH_NAMES}, **{name: name for name in MONTH_NAMES}, "sept": "september"}
WEEKDAYS = _pairs("""
mon: monday; tue: tuesday; tues: tuesday; wed: wednesday; thu: thursday; thur: thursday; thurs: thursday; fri: friday; sat: saturday
sun: sunday
""")

# symbol or code: (one, many, one of the small unit, many of it); an empty small unit reads "3.50" as a decimal
CURRENCIES: dict[str, tuple[str, str, str, str]] = {
    "$": ("dollar", "dollars", "cent", "cents"),
    "US$": ("u s dollar", "u s dollars", "cent", "cents"),
    "A$": ("australian dollar", "australian dollars", "cent", "cents"),
    "C$": ("canadian dollar", "canadian dollars", "cent", "cents"),
    "HK$": ("hong kong dollar", "hong kong dollars", "cent", "cents"),
    "£": ("pound", "pounds", "penny", "pence"),
    "€": ("euro", "euros", "cent", "cents"),
    "¥": ("yen", "yen", "", ""),
    "₹": ("rupee", "rupees", "", ""),
    "₩": ("won", "won", "", ""),
    "₽": ("ruble", "rubles", "", ""),
    "₿": ("bitcoin", "bitcoins", "", ""),
    "₺": ("lira", "lira", "", ""),
    "₪": ("shekel", "shekels", "", ""),
    "USD": ("u s dollar", "u s dollars", "cent", "cents"),
    "EUR": ("euro", "euros", "cent", "cents"),
    "GBP": ("british pound", "british pounds", "penny", "pence"),
    "JPY": ("japanese yen", "japanese yen", "", ""),
    "CHF": ("swiss franc", "swiss francs", "", ""),
    "CAD": ("canadian dollar", "canadian dollars", "cent", "cents"),
    "AUD": ("australian dollar", "australian dollars", "cent", "cents"),
    "INR": ("indian rupee", "indian rupees", "", ""),
    "CNY": ("chinese yuan", "chinese yuan", "", ""),
    "SEK": ("swedish krona", "swedish kronor", "", ""),
}
MAGNITUDES = {
    **{join + word: word for word in ("thousand", "million", "billion", "trillion") for join in ("", "-")},
    "k": "thousand", "m": "million", "mn": "million", "b": "billion", "bn": "billion"}

_UNITS = """
km kilometer, m meter, in inch|inches, cm centimeter, mm millimeter, nm nanometer, µm micrometer, μm micrometer, mi mile, yd yard, ft
foot|feet, kg kilogram, g gram, mg milligram, mcg microgram, lb pound, lbs pound, oz ounce, l liter, L liter, ml milliliter, mL
milliliter, cl centiliter, gal gallon, s second, sec second, secs second, ms millisecond, ns nanosecond, min minute, mins minute, h
hour, hr hour, hrs hour, Hz hertz|hertz, kHz kilohertz|kilohertz, MHz megahertz|megahertz, GHz gigahertz|gigahertz, kB kilobyte, KB
kilobyte, MB megabyte, GB gigabyte, TB terabyte, PB petabyte, MiB mebibyte, GiB gibibyte, kbps kilobit per second|kilobits per second,
Mbps megabit per second|megabits per second, Gbps gigabit per second|gigabits per second, W watt, kW kilowatt, MW megawatt, GW gigawatt,
kWh kilowatt hour, Wh watt hour, V volt, kV kilovolt, mV millivolt, mA milliamp, mAh milliamp hour, dB decibel, Pa pascal, kPa
kilopascal, hPa hectopascal, psi p s i|p s i, J joule, kJ kilojoule, kcal kilocalorie, mph mile per hour|miles per hour, kph kilometer
per hour|kilometers per hour, kmh kilometer per hour|kilometers per hour, rpm revolution per minute|revolutions per minute, fps frame
per second|frames per second, bpm beat per minute|beats per minute, mpg mile per gallon|miles per gallon, px pixel, MP megapixel, ha
hectare, ppm part per million|parts per million, Ω ohm, kΩ kilohm, sqft square foot|square feet, tsp teaspoon, tbsp tablespoon, nmi
nautical mile, ly light year, mol mole, eV electron volt, qt quart, dpi d p i|d p i
"""


def _units() -> dict[str, tuple[str, str]]:
    table = {}
    for item in " ".join(_UNITS.split()).split(", "):
        key, words = item.split(" ", 1)
        one, _, many = words.partition("|")
        table[key] = (one, many or (one + "s"))
    return table


UNITS = _units()

ABBREVIATIONS = _pairs("""
mr: mister; mrs: missus; ms: miz; mx: mix; messrs: messieurs; prof: professor; gen: general; col: colonel; capt: captain; cpt: captain
lt: lieutenant; sgt: sergeant; cpl: corporal; maj: major; cmdr: commander; adm: admiral; sen: senator; rep: representative
gov: governor; rev: reverend; hon: honorable; pres: president; supt: superintendent; jr: junior; sr: senior; esq: esquire
inc: incorporated; ltd: limited; co: company; corp: corporation; bros: brothers; vs: versus; etc: et cetera; no: number; nos: numbers
vol: volume; vols: volumes; ch: chapter; p: page; pp: pages; fig: figure; figs: figures; sec: section; art: article; para: paragraph
ed: edition; eds: editors; ext: extension; approx: approximately; est: established; dept: department; univ: university
assn: association; govt: government; intl: international; natl: national; ave: avenue; blvd: boulevard; rd: road; ln: lane; hwy: highway
pkwy: parkway; sq: square; apt: apartment; bldg: building; fl: floor; mt: mount; mtn: mountain; ft: fort; st: saint; cf: compare; al: al
ca: circa; max: maximum; min: minimum; avg: average; temp: temperature; tel: telephone; misc: miscellaneous; incl: including
excl: excluding; jan: january; feb: february; mar: march; apr: april; jun: june; jul: july; aug: august; sep: september; sept: september
oct: october; nov: november; dec: december; mon: monday; tue: tuesday; tues: tuesday; wed: wednesday; thu: thursday; thur: thursday
thurs: thursday; fri: friday; sat: saturday; sun: sunday; viz: namely; ibid: ibidem; orig: originally; pron: pronounced
abbr: abbreviation; gal: gallons
""")

# these stand before a name: their full stop never ends a sentence
TITLES = frozenset("""
mr mrs ms mx messrs prof gen col capt cpt lt sgt cpl maj cmdr adm sen rep gov rev hon pres supt mt ft st no nos vs cf ca approx
jan feb mar apr jun jul aug sep sept oct nov dec
""".split())

# dotted abbreviations, without their dots
DOTTED = _pairs("""
eg: for example; ie: that is; am: ay m; pm: p m; phd: p h d; ad: ay d; bc: b c; ps: p s; rsvp: r s v p; aka: also known as
""")

# said as a word although written in capitals
WORD_ACRONYMS = frozenset("""
NASA NATO UNESCO UNICEF OPEC AIDS LASER RADAR SONAR SCUBA NAFTA ASAP FEMA PIN SIM RAM ROM GIF SWAT ZIP NAVY COVID FIFA UEFA NASDAQ OSHA
HUD SAT NASCAR BAFTA SIDS SARS MERS JPEG GIF CAPTCHA LAN WAN DOS WASP POTUS FLOTUS SCOTUS YOLO FOMO LIDAR TASER YAML JSON CUDA TED VISA
NIMBY ANZAC FORTRAN COBOL JAX
""".split())
# short words that are written in capitals only for emphasis
COMMON_CAPITALS = frozenset("""
I A AN AND THE TO OF IN IS IT OR NO NOT YES SO BE BY DO GO HE SHE WE ME MY ON UP AS AT IF AM OH HEY WHO WHY HOW NOW NEW ALL BUT YOU CAN
WAS HAS HAD HIS HER OUR OUT ONE TWO ANY SEE DID GET LET STOP DON WOW BIG BAD OLD END DAY WAY MAN SAY SAW RUN OFF TOO HIM ITS ARE FOR WON
TOP HOT RED MAY WAR
""".split()) - {"IT", "US", "OR"}
# letters that are spelled although they could be read
CODES = frozenset("""
io uk us eu ai tv de fr co ch ca au txt py wav mp pdf jpg png csv tsv html htm xml xlsx docx cc cpp sh js md gz www http https NAACP
IEEE IUPAC ICAO ISBN IOS API URL AOL AARP ACLU ASPCA EEOC UAE UAW AIG IAEA LGBTQ UCLA USAF USDA USPS USSR AFAIK IEC ISO FAQ EULA IMAP
""".split())

# a roman numeral after these is a cardinal
CARDINAL_HEADS = tuple("""
chapter part act scene volume book war section phase type class level stage article appendix figure table title rocky apollo bowl
episode season unit lesson grade psalm step round division category mark number quadrant sonata symphony
""".split())

# names whose bearers are counted with a single letter ("George V"; but not "Malcolm X")
REGNAL = frozenset("""
Alexander Alfonso Baldwin Carl Charles Christian Clement Constantine Edward Eric Ferdinand Francis Frederick George Gregory Gustav Haakon
Henry Innocent James John Leo Louis Mohammed Murad Nicholas Olav Otto Paul Philip Pius Ptolemy Ramses Richard Robert Urban William
""".split())

# prefixes of names that keep their inner capital
NAME_PREFIXES = frozenset("Mc Mac De La Le Di Du Van Von Fitz O".split())

GREEK = {char: f" {name} " for char, name in zip("αβγδεζηθικλνξπρστυφχψωΓΔΘΛΞΠΣΦΨ", """
alpha beta gamma delta epsilon zeta eta theta iota kappa lambda nu xi pi
rho sigma tau upsilon phi chi psi omega gamma delta theta lambda xi pi sigma phi psi""".split())}

# applied in order, before SYMBOLS
SYMBOLS_BETWEEN = [
    (r"(?<=\w)\s?&\s?(?=\w)", " and "),
    (r"(?<=\w)\s*\+\s*(?=\w)", " plus "),
    (r"(?<=\w)\s*(?:×|\*)\s*(?=\w)", " times "),
    (r"(?<=\w)\s*÷\s*(?=\w)", " divided by "),
    (r"(?<=\w)\s*=\s*(?=\w)", " equals "),
    (r"(?<=\w)\s*->\s*(?=\w)", " to "),
    (r"\band/or\b", "and or"),
    (r"(?<=\w)/(?=\w)", " slash "),
    (r"#\s?(?=\w)", " number "),
    (r"<\s*(?=\w)", " less than "),
    (r">\s*(?=\w)", " greater than "),
    (r"~\s*(?=\w)", " about "),
    (r"(?<=\w)\s*\^\s*(?=\w)", " to the power of "),
    (r"§\s*(?=\w)", " section "),
    (r"[®©*]", " "),
]
SYMBOLS = {
    "&": "and", "@": "at", "%": "percent", "+": "plus", "=": "equals", "±": "plus or minus", "≈": "approximately equals", "∞": "infinity",
    "≤": "less than or equal to", "≥": "greater than or equal to", "≠": "is not equal to", "√": "square root of", "→": "to", "°": "degrees",
    "$": "dollars", "£": "pounds", "€": "euros", "¥": "yen", "¢": "cents"}
