"""Inflection, German and English: what follows from a lemma by rule."""

from __future__ import annotations

import re

from recipes.demo.lexicon import DOUBLING_ENGLISH, IRREGULAR_ENGLISH, Adjective, Noun, Verb

# Columns of every table: nominative, accusative, dative, genitive. Rows: m, f, n, p (plural).
CASES = ("nom", "acc", "dat", "gen")
DEFINITE = {
    "m": ("der", "den", "dem", "des"),
    "f": ("die", "die", "der", "der"),
    "n": ("das", "das", "dem", "des"),
    "p": ("die", "die", "den", "der"),
}
DER_ENDINGS = {
    "m": ("er", "en", "em", "es"),
    "f": ("e", "e", "er", "er"),
    "n": ("es", "es", "em", "es"),
    "p": ("e", "e", "en", "er"),
}
EIN_ENDINGS = {**DER_ENDINGS, "m": ("", "en", "em", "es"), "n": ("", "", "em", "es")}
WEAK_ENDINGS = {
    "m": ("e", "en", "en", "en"),
    "f": ("e", "e", "en", "en"),
    "n": ("e", "e", "en", "en"),
    "p": ("en", "en", "en", "en"),
}
MIXED_ENDINGS = {**WEAK_ENDINGS, "m": ("er", "en", "en", "en"), "n": ("es", "es", "en", "en")}
STRONG_ENDINGS = {**DER_ENDINGS, "m": ("er", "en", "em", "en"), "n": ("es", "es", "em", "en")}

# The determiners by the declension of the adjective after them; "" is a bare noun.
EIN_WORDS = {"ein", "kein", "mein", "dein", "sein", "unser"}
DER_WORDS = {"dies", "jed"}
ENGLISH_DETERMINERS = {
    "der": ("the", "the"),
    "ein": ("a", ""),
    "kein": ("a", "any"),
    "mein": ("my", "my"),
    "dein": ("your", "your"),
    "sein": ("his", "his"),
    "unser": ("our", "our"),
    "dies": ("this", "these"),
    "jed": ("every", "every"),
    "": ("", ""),
}

# ich, du, er, wir, ihr, sie
IRREGULAR_PRESENT = {
    "sein": ("bin", "bist", "ist", "sind", "seid", "sind"),
    "haben": ("habe", "hast", "hat", "haben", "habt", "haben"),
    "werden": ("werde", "wirst", "wird", "werden", "werdet", "werden"),
    "wissen": ("weiß", "weißt", "weiß", "wissen", "wisst", "wissen"),
    "können": ("kann", "kannst", "kann", "können", "könnt", "können"),
    "müssen": ("muss", "musst", "muss", "müssen", "müsst", "müssen"),
    "wollen": ("will", "willst", "will", "wollen", "wollt", "wollen"),
    "sollen": ("soll", "sollst", "soll", "sollen", "sollt", "sollen"),
    "dürfen": ("darf", "darfst", "darf", "dürfen", "dürft", "dürfen"),
    "möchten": ("möchte", "möchtest", "möchte", "möchten", "möchtet", "möchten"),
}
PRETERITE = {
    "sein": ("war", "warst", "war", "waren", "wart", "waren"),
    "werden": ("wurde", "wurdest", "wurde", "wurden", "wurdet", "wurden"),
    "können": ("konnte", "konntest", "konnte", "konnten", "konntet", "konnten"),
    "müssen": ("musste", "musstest", "musste", "mussten", "musstet", "mussten"),
    "wollen": ("wollte", "wolltest", "wollte", "wollten", "wolltet", "wollten"),
}

# fmt: off
_UNITS = [
    "", "ein", "zwei", "drei", "vier", "fünf", "sechs", "sieben", "acht", "neun", "zehn", "elf", "zwölf",
]
_TENS = ["", "", "zwanzig", "dreißig", "vierzig", "fünfzig", "sechzig", "siebzig", "achtzig", "neunzig"]
_ENGLISH_UNITS = [
    "", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
]
_ENGLISH_TENS = ["", "", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
# fmt: on


def german_number(n: int) -> str:
    """2 ≤ n ≤ 99 in words; the unit comes before the ten: 21 is `einundzwanzig`."""
    ten, unit = divmod(n, 10)
    if n <= 12:
        return _UNITS[n]
    if n < 20:
        return {16: "sech", 17: "sieb"}.get(n, _UNITS[unit]) + _UNITS[10]
    return f"{_UNITS[unit]}und{_TENS[ten]}" if unit else _TENS[ten]


def english_number(n: int) -> str:
    ten, unit = divmod(n, 10)
    if n < 20:
        return _ENGLISH_UNITS[n]
    return f"{_ENGLISH_TENS[ten]}-{_ENGLISH_UNITS[unit]}" if unit else _ENGLISH_TENS[ten]


def german_noun(noun: Noun, plural: bool, case: str) -> str:
    if plural:
        form = noun.de_plural
        return form + "n" if case == "dat" and not form.endswith(("n", "s")) else form
    if noun.weak and case != "nom":
        return noun.de_plural  # Student, den Studenten: the oblique form is the plural
    if case == "gen" and noun.gender != "f":
        syllables = len(re.findall("[aeiouäöü]+", noun.de.lower()))
        return noun.de + ("es" if syllables == 1 else "s")
    return noun.de


def german_determiner(determiner: str, gender: str, case: str) -> str:
    """`gender` is m, f, n or p; numerals and the bare noun have no endings."""
    column = CASES.index(case)
    if determiner == "der":
        return DEFINITE[gender][column]
    if determiner in DER_WORDS:
        return determiner + DER_ENDINGS[gender][column]
    if determiner in EIN_WORDS:
        return "" if determiner == "ein" and gender == "p" else determiner + EIN_ENDINGS[gender][column]
    return determiner


def german_adjective(adjective: Adjective, determiner: str, gender: str, case: str) -> str:
    if determiner == "der" or determiner in DER_WORDS:
        table = WEAK_ENDINGS
    elif determiner in EIN_WORDS and not (determiner == "ein" and gender == "p"):
        table = MIXED_ENDINGS
    else:
        table = STRONG_ENDINGS
    return adjective.inflecting + table[gender][CASES.index(case)]


def german_present(base: str, he: str) -> tuple[str, ...]:
    """The six present forms; du and er share a stem that may not be the infinitive's (liest, gibt, fährt)."""
    if base in IRREGULAR_PRESENT:
        return IRREGULAR_PRESENT[base]
    stem = base.removesuffix("en") if base.endswith("en") else base.removesuffix("n")
    strong = he.removesuffix("t")
    du = strong + ("t" if strong.endswith(("s", "ß", "z", "x")) else "st")
    needs_e = stem.endswith(("t", "d", "ffn", "chn", "gn"))
    return (stem + "e", du, he, base, stem + ("et" if needs_e else "t"), base)


def zu_infinitive(verb: Verb) -> str:
    """aufmachen → aufzumachen, lesen → zu lesen."""
    return f"{verb.particle}zu{verb.base}" if verb.particle else f"zu {verb.de}"


def english_plural(noun: Noun) -> str:
    if noun.en_plural:
        return noun.en_plural
    if noun.en.endswith(("s", "x", "ch", "sh")):
        return noun.en + "es"
    if noun.en.endswith("y") and noun.en[-2] not in "aeiou":
        return noun.en[:-1] + "ies"
    return noun.en + "s"


def with_article(phrase: str) -> str:
    """a or an, by the first letter: the lexicon has no "hour" and no "university"."""
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


def english_verb(verb: str, form: str) -> str:
    """One of `base`, `s`, `past`, `participle`, `ing`; the first word inflects: get up, gets up, got up."""
    head, _, rest = verb.partition(" ")
    tail = f" {rest}" if rest else ""
    if form == "base":
        return verb
    if form == "s":
        if head == "have":
            return "has" + tail
        if head.endswith(("s", "x", "ch", "sh", "o")):
            return f"{head}es{tail}"
        if head.endswith("y") and head[-2] not in "aeiou":
            return f"{head[:-1]}ies{tail}"
        return f"{head}s{tail}"
    if form == "ing":
        if head in DOUBLING_ENGLISH:
            return f"{head}{head[-1]}ing{tail}"
        if head.endswith("e") and not head.endswith("ee"):
            return f"{head[:-1]}ing{tail}"
        return f"{head}ing{tail}"
    if head in IRREGULAR_ENGLISH:
        return IRREGULAR_ENGLISH[head][form == "participle"] + tail
    if head.endswith("e"):
        return f"{head}d{tail}"
    if head in DOUBLING_ENGLISH:
        return f"{head}{head[-1]}ed{tail}"
    if head.endswith("y") and head[-2] not in "aeiou":
        return f"{head[:-1]}ied{tail}"
    return f"{head}ed{tail}"
