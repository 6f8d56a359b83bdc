"""A small grammar that says one meaning twice: in German and in English.

A `Clause` is the meaning: who does what to whom, when, where, how often, whether. German puts its verb into
a bracket, finite verb second (or first, or last) and the rest at the end; English keeps subject, verb, object
and needs an auxiliary to negate and to ask. Nothing is chosen here: the same clause always gives the same
pair, so one German sentence has one English translation.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Protocol

from recipes.demo.lexicon import Adjective, Noun, Place, Time, Verb
from recipes.demo.morphology import (
    ENGLISH_DETERMINERS,
    IRREGULAR_PRESENT,
    PRETERITE,
    english_number,
    english_plural,
    english_verb,
    german_adjective,
    german_determiner,
    german_noun,
    german_number,
    german_present,
    with_article,
    zu_infinitive,
)


def join(*parts: str) -> str:
    return " ".join(part for part in parts if part)


# --- who and what -----------------------------------------------------------------------------------------


class Nominal(Protocol):
    @property
    def agreement(self) -> int:
        """Index into ich, du, er, wir, ihr, sie."""
        ...

    @property
    def light(self) -> bool:
        """Personal pronouns stand before everything else in the German middle field."""
        ...

    def de(self, case: str) -> str: ...

    def en(self, subject: bool) -> str: ...


@dataclass(frozen=True)
class Pronoun:
    forms: dict[str, str]
    english: tuple[str, str]
    agreement: int
    light: bool = True

    def de(self, case: str) -> str:
        return self.forms[case]

    def en(self, subject: bool) -> str:
        return self.english[0 if subject else 1]


def _pronoun(nom: str, acc: str, dat: str, subject: str, obj: str, agreement: int) -> Pronoun:
    return Pronoun({"nom": nom, "acc": acc, "dat": dat}, (subject, obj), agreement)


ICH = _pronoun("ich", "mich", "mir", "I", "me", 0)
DU = _pronoun("du", "dich", "dir", "you", "you", 1)
ER = _pronoun("er", "ihn", "ihm", "he", "him", 2)
SIE = _pronoun("sie", "sie", "ihr", "she", "her", 2)
WIR = _pronoun("wir", "uns", "uns", "we", "us", 3)
IHR = _pronoun("ihr", "euch", "euch", "you", "you", 4)
SIE_PLURAL = _pronoun("sie", "sie", "ihnen", "they", "them", 5)
ES = _pronoun("es", "es", "ihm", "it", "it", 2)
REFLEXIVE = ("mich", "dich", "sich", "uns", "euch", "sich")


@dataclass(frozen=True)
class Word:
    """A name or a question word: the same in every case, unless `cases` says otherwise."""

    german: str
    english: str
    agreement: int = 2
    light: bool = False
    cases: tuple[tuple[str, str], ...] = ()

    def de(self, case: str) -> str:
        return dict(self.cases).get(case, self.german)

    def en(self, subject: bool) -> str:
        return self.english


WHO = Word("wer", "who", cases=(("acc", "wen"), ("dat", "wem")))
WHAT = Word("was", "what")


@dataclass(frozen=True)
class NounPhrase:
    """Determiner (or number), adjective, noun, owner in the genitive, relative clause."""

    noun: Noun
    determiner: str = "der"
    plural: bool = False
    number: int = 0
    adjective: Adjective | None = None
    owner: NounPhrase | None = None
    relative: Relative | None = None
    light: bool = False

    @property
    def agreement(self) -> int:
        return 5 if self.plural else 2

    @property
    def gender(self) -> str:
        return "p" if self.plural else self.noun.gender

    def de(self, case: str) -> str:
        determiner = german_number(self.number) if self.number else self.determiner
        adjective = self.adjective and german_adjective(self.adjective, determiner, self.gender, case)
        phrase = join(
            german_determiner(determiner, self.gender, case),
            adjective or "",
            german_noun(self.noun, self.plural, case),
            self.owner.de("gen") if self.owner else "",
        )
        return f"{phrase}, {self.relative.de(self)}," if self.relative else phrase

    def en(self, subject: bool = True) -> str:
        noun = english_plural(self.noun) if self.plural else self.noun.en
        if self.noun.partner and not self.plural and self.determiner in ("mein", "dein", "sein", "unser"):
            noun = self.noun.partner
        phrase = join(self.adjective.en if self.adjective else "", noun)
        if self.owner:
            owner = self.owner.en()
            phrase = f"{owner}'{'' if owner.endswith('s') else 's'} {phrase}"
        elif self.number:
            phrase = f"{english_number(self.number)} {phrase}"
        else:
            several = self.plural or self.noun.mass
            determiner = ENGLISH_DETERMINERS[self.determiner][1 if several else 0]
            if self.noun.mass and self.determiner == "dies":
                determiner = "this"
            phrase = with_article(phrase) if determiner == "a" else join(determiner, phrase)
        return f"{phrase} {self.relative.en(self)}" if self.relative else phrase


@dataclass(frozen=True)
class Relative:
    """`der das Buch liest` (the head is the subject) or `den ich gestern gesehen habe` (`case` of the head).

    The clause leaves the place of the head empty. Only a personal pronoun may be the subject of the second
    kind: "die Frau, die das Kind sieht" would have two readings.
    """

    clause: Clause
    case: str

    def de(self, head: NounPhrase) -> str:
        pronoun = german_determiner("der", head.gender, self.case)
        pronoun = "denen" if (head.plural and self.case == "dat") else pronoun
        return join(
            pronoun,
            self.clause.german_final(skip_subject=self.case == "nom", agreement=self._agreement(head)),
        )

    def en(self, head: NounPhrase) -> str:
        person = head.noun.kind == "person"
        if self.case == "nom":
            return join("who" if person else "that", self.clause.english_predicate(self._agreement(head)))
        return join("whom" if person else "that", self.clause.english())

    def _agreement(self, head: NounPhrase) -> int:
        return head.agreement if self.case == "nom" else self.clause.subject.agreement


# --- what happens -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Modal:
    """English modals are either auxiliaries (`can`) or full verbs with `to` (`want to`)."""

    de: str
    en: str
    en_past: str = ""
    full_verb: bool = False


CAN = Modal("können", "can", "could")
MUST = Modal("müssen", "have to", "have to", full_verb=True)
WANT = Modal("wollen", "want to", "want to", full_verb=True)
SHOULD = Modal("sollen", "should")
MAY = Modal("dürfen", "may")
WOULD_LIKE = Modal("möchten", "would like to")
MODALS = (CAN, MUST, WANT, SHOULD, MAY, WOULD_LIKE)

BE = ("am", "are", "is", "are", "are", "are")
WAS = ("was", "were", "was", "were", "were", "were")


@dataclass(frozen=True)
class State:
    """What follows `sein`: tired, older than the dog, twenty-one years old. `verb` may also be `kosten`."""

    de: str
    en: str
    verb: str = "sein"


@dataclass(frozen=True)
class Infinitive:
    """A `zu` infinitive, after a verb (versuchen, ... zu lesen) or as a purpose (um ... zu lesen)."""

    clause: Clause
    purpose: bool = False

    def de(self) -> str:
        clause = self.clause
        assert clause.verb is not None
        return join("um" if self.purpose else "", *clause.german_middle(), zu_infinitive(clause.verb))

    def en(self) -> str:
        assert self.clause.verb is not None
        return join("to", *self.clause.english_core(self.clause.verb.en))


@dataclass(frozen=True)
class Clause:
    """One event or state. `tense` is the English one: present, past, future or progressive."""

    subject: Nominal
    verb: Verb | None = None
    state: State | None = None
    dative: Nominal | None = None
    accusative: Nominal | None = None
    agent: Nominal | None = None  # of a passive, whose subject is `subject`
    companion: Nominal | None = None
    place: Place | None = None
    goal: Place | None = None
    time: Time | None = None
    frequency: tuple[str, str] | None = None
    modal: Modal | None = None
    tense: str = "present"
    negated: bool = False
    infinitive: Infinitive | None = None

    @property
    def without(self) -> bool:
        """Negated by `kein` on the object rather than by `nicht`."""
        return self.negated and isinstance(self.accusative, NounPhrase) and self.accusative.determiner == "kein"

    def reflexive(self, agreement: int) -> str:
        return REFLEXIVE[agreement] if self.verb and self.verb.frame == "reflexive" else ""

    # German ------------------------------------------------------------------------------------------------

    def german_verb(self, agreement: int) -> tuple[str, str, str]:
        """(finite verb of a main clause, right bracket, verb complex of a verb-final clause)."""
        past = self.tense == "past"
        if self.state:
            if self.state.verb == "kosten":
                finite = german_present("kosten", "kostet")[agreement]
            else:
                finite = (PRETERITE if past else IRREGULAR_PRESENT)["sein"][agreement]
            return finite, "", finite
        assert self.verb is not None
        if self.agent:
            finite, bracket = (
                (PRETERITE if past else IRREGULAR_PRESENT)["werden"][agreement],
                self.verb.participle,
            )
        elif self.modal:
            finite = (PRETERITE if past else IRREGULAR_PRESENT)[self.modal.de][agreement]
            bracket = self.verb.de
        elif past:
            finite, bracket = IRREGULAR_PRESENT[self.verb.auxiliary][agreement], self.verb.participle
        else:
            finite = german_present(self.verb.base, self.verb.he)[agreement]
            return finite, self.verb.particle, self.verb.particle + finite
        return finite, bracket, f"{bracket} {finite}"

    def german_middle(self, *skip: str, agreement: int | None = None) -> list[str]:
        """Everything between the brackets but the subject; `skip` names the parts that stand elsewhere."""
        agreement = self.subject.agreement if agreement is None else agreement
        objects = {"dative": self.dative, "accusative": self.accusative}
        objects = {name: noun for name, noun in objects.items() if noun and name not in skip}
        pronouns = [noun.de(name[:3]) for name, noun in objects.items() if noun and noun.light]
        nouns = [noun.de(name[:3]) for name, noun in objects.items() if noun and not noun.light]
        return [
            self.reflexive(agreement) if "reflexive" not in skip else "",
            *pronouns,
            self.time.de if self.time and "time" not in skip else "",
            self.frequency[0] if self.frequency else "",
            *nouns,
            "nicht" if self.negated and not self.without else "",
            f"von {self.agent.de('dat')}".replace("von dem ", "vom ") if self.agent else "",
            f"mit {self.companion.de('dat')}" if self.companion else "",
            self.place.de_at if self.place and "place" not in skip else "",
            self.goal.de_to if self.goal else "",
            self.state.de if self.state else "",
        ]

    def _german_tail(self) -> str:
        return f", {self.infinitive.de()}" if self.infinitive else ""

    def german_main(self, front: str = "subject") -> str:
        """Verb second; `front` is subject, time, place, accusative, dative, or "" for verb first.

        After the finite verb, `sich` comes before a subject that is a noun: heute ruht sich der Mann aus.
        """
        finite, bracket, _ = self.german_verb(self.subject.agreement)
        first = {
            "": "",
            "subject": self.subject.de("nom"),
            "time": self.time.de if self.time else "",
            "place": self.place.de_at if self.place else "",
            "accusative": self.accusative.de("acc") if self.accusative else "",
            "dative": self.dative.de("dat") if self.dative else "",
        }[front]
        subject = [] if front == "subject" else [self.subject.de("nom")]
        skip = [front]
        if subject and not self.subject.light:
            subject.insert(0, self.reflexive(self.subject.agreement))
            skip.append("reflexive")
        return join(first, finite, *subject, *self.german_middle(*skip), bracket) + self._german_tail()

    def german_final(self, skip_subject: bool = False, agreement: int | None = None) -> str:
        """Verb last, as after weil and dass and in a relative clause."""
        agreement = self.subject.agreement if agreement is None else agreement
        subject = "" if skip_subject else self.subject.de("nom")
        complex_ = self.german_verb(agreement)[2]
        return join(subject, *self.german_middle(agreement=agreement), complex_) + self._german_tail()

    # English -----------------------------------------------------------------------------------------------

    def english_verb(self, agreement: int, support: bool) -> tuple[str, str]:
        """(auxiliary, verb); `support` asks for an auxiliary where a plain verb would have none."""
        third = agreement == 2
        past = self.tense == "past"
        be = "will be" if self.tense == "future" else (WAS if past else BE)[agreement]
        if self.state and self.state.verb == "sein":
            aux, _, rest = be.partition(" ")
            return aux, rest
        assert self.verb is not None or self.state is not None
        verb = self.verb.en.split("|")[0] if self.verb else "cost"
        if self.agent:
            aux, _, rest = be.partition(" ")
            return aux, join(rest, english_verb(verb, "participle"))
        if self.modal and not self.modal.full_verb:
            if self.modal is MAY and self.negated:
                return "must", verb
            aux, _, rest = (self.modal.en_past if past else self.modal.en).partition(" ")
            return aux, join(rest, verb)
        if self.modal:
            verb = f"{self.modal.en} {verb}"
        elif self.tense == "future":
            return "will", verb
        elif self.tense == "progressive":
            return BE[agreement], english_verb(verb, "ing")
        if support:
            return ("did" if past else "does" if third else "do"), verb
        return "", english_verb(verb, "past" if past else "s" if third else "base")

    def english_core(self, verb: str, skip: str = "") -> list[str]:
        """Verb, objects, complements and adverbials; "pick|up" takes a pronoun into its middle."""
        head, _, particle = verb.partition("|")
        accusative = self.accusative if skip != "accusative" else None
        between = accusative is not None and accusative.light
        dative = self.dative if skip != "dative" else None
        return [
            head,
            particle if not between else "",
            dative.en(False) if dative else "",
            accusative.en(False) if accusative else "",
            particle if between else "",
            self.state.en if self.state else "",
            f"by {self.agent.en(False)}" if self.agent else "",
            self.goal.en_to if self.goal else "",
            f"with {self.companion.en(False)}" if self.companion else "",
            self.place.en_at if self.place and skip != "place" else "",
            self.time.en if self.time and skip != "time" else "",
            self.infinitive.en() if self.infinitive else "",
        ]

    def english_predicate(self, agreement: int, skip: str = "") -> str:
        aux, verb = self.english_verb(agreement, support=self.negated)
        if self.verb and "|" in self.verb.en:
            verb = f"{verb}|{self.verb.en.split('|')[1]}"
        negation = "not" if self.negated else ""
        often = self.frequency[1] if self.frequency else ""
        predicate = join(aux, negation, often, *self.english_core(verb, skip))
        return predicate.replace("can not ", "cannot ", 1) if aux == "can" else predicate

    def english(self, front: str = "subject") -> str:
        first = {"time": self.time and self.time.en, "place": self.place and self.place.en_at}.get(front) or ""
        return join(first, self.subject.en(True), self.english_predicate(self.subject.agreement, front))

    def english_question(self, skip: str = "") -> str:
        """Auxiliary first: "does the man read the book"."""
        aux, verb = self.english_verb(self.subject.agreement, support=True)
        if self.verb and "|" in self.verb.en:
            verb = f"{verb}|{self.verb.en.split('|')[1]}"
        often = self.frequency[1] if self.frequency else ""
        return join(aux, self.subject.en(True), "not" if self.negated else "", often, *self.english_core(verb, skip))


# --- sentences --------------------------------------------------------------------------------------------

Pair = tuple[str, str]


def finish(de: str, en: str, mark: str = ".") -> Pair:
    """Capital letter, final mark, and the commas that German clauses share."""

    def polish(text: str) -> str:
        text = re.sub(r"\s+,", ",", text)
        text = re.sub(r",(\s*,)+", ",", text).strip().rstrip(",")
        return text[0].upper() + text[1:] + mark

    return polish(de), polish(en)


def statement(clause: Clause, front: str = "subject") -> Pair:
    """The fronted object of German ("Den Brief liest die Frau") goes back to its place in English."""
    english_front = front if front in ("time", "place") else "subject"
    return finish(clause.german_main(front), clause.english(english_front))


def yes_no_question(clause: Clause) -> Pair:
    return finish(clause.german_main(""), clause.english_question(), "?")


def adverb_question(clause: Clause, word: Pair) -> Pair:
    """wo, wann, warum."""
    return finish(join(word[0], clause.german_main("")), join(word[1], clause.english_question()), "?")


def subject_question(clause: Clause) -> Pair:
    """`clause.subject` is WHO; English asks for its subject without `do`."""
    return finish(clause.german_main(), clause.english(), "?")


def object_question(clause: Clause, case: str) -> Pair:
    """The dative or accusative of `clause` is WHO or WHAT."""
    asked = clause.dative if case == "dative" else clause.accusative
    assert asked is not None
    return finish(clause.german_main(case), join(asked.en(False), clause.english_question(case)), "?")


def subordinate(main: Clause, conjunction: Pair, side: Clause, side_first: bool) -> Pair:
    """weil, obwohl, wenn, dass, ob: verb last; a fronted clause is the first part of the main one."""
    de_side, en_side = join(conjunction[0], side.german_final()), join(conjunction[1], side.english())
    if side_first:
        return finish(f"{de_side}, {main.german_main('')}", f"{en_side}, {main.english()}")
    return finish(f"{main.german_main()}, {de_side}", f"{main.english()} {en_side}")


def coordination(first: Clause, conjunction: Pair, second: Clause) -> Pair:
    comma = "" if conjunction[0] == "und" else ","
    return finish(
        f"{first.german_main()}{comma} {conjunction[0]} {second.german_main()}",
        f"{first.english()}{comma} {conjunction[1]} {second.english()}",
    )
