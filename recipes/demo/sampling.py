"""Draws sentences from the grammar: seeded, without repeats, without overlap between the splits."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterator

from recipes.demo import grammar as g
from recipes.demo.grammar import Clause, Infinitive, Nominal, NounPhrase, Pair, Pronoun, Relative, State
from recipes.demo.lexicon import ADJECTIVES, FREQUENCIES, NAMES, NOUNS, PLACES, TIMES, VERBS, Noun, Time, Verb
from recipes.demo.morphology import english_number, german_number

PERSONS = [noun for noun in NOUNS if noun.kind == "person"]
ANIMALS = [noun for noun in NOUNS if noun.kind == "animal"]
THINGS = [noun for noun in NOUNS if noun.kind in ("clothes", "vehicle", "thing", "text")]
SUBJECT_PRONOUNS = (g.ICH, g.DU, g.ER, g.SIE, g.WIR, g.IHR, g.SIE_PLURAL)
ACCUSATIVE_PRONOUNS = (g.ICH, g.DU, g.ER, g.WIR, g.IHR)  # "sie" would be her or them
DATIVE_PRONOUNS = SUBJECT_PRONOUNS
UNAMBIGUOUS_SUBJECTS = (g.ICH, g.DU, g.ER, g.WIR)

EVENTS = [verb for verb in VERBS if verb.frame not in ("infinitive", "clause", "weather")]
BY_FRAME = {frame: [verb for verb in VERBS if verb.frame == frame] for frame in {verb.frame for verb in VERBS}}
PASSIVES = [verb for verb in VERBS if verb.passive]
PAST_MODALS = (g.CAN, g.MUST, g.WANT)

# What an English verb of each aspect allows besides present and past.
TENSES = {"action": ["future", "progressive"], "event": ["future"], "state": []}

Splits = dict[str, list[Pair]]


class Sampler:
    """One random stream; every method draws one meaning or one sentence."""

    def __init__(self, seed: int):
        self.rng = random.Random(seed)

    def chance(self, p: float) -> bool:
        return self.rng.random() < p

    # who and what

    def noun_phrase(
        self, noun: Noun, *, determiners: str = "der ein mein dein sein unser dies", numbers: bool = True
    ) -> NounPhrase:
        """A noun with any determiner that suits it; `ein` in the plural and `ein` Milch are bare nouns."""
        rng = self.rng
        plural = not noun.mass and self.chance(0.3)
        determiner = rng.choice(determiners.split() + ["der"] * 3 * ("der" in determiners.split()))
        if (plural or noun.mass) and determiner == "ein":
            determiner = ""
        fitting = [adjective for adjective in ADJECTIVES if noun.kind in adjective.kinds.split()]
        number = rng.randint(2, 99) if plural and numbers and determiner == "" and self.chance(0.7) else 0
        if number and noun.kind in ("person", "room", "building", "animal"):
            number = rng.randint(2, 20)
        return NounPhrase(
            noun=noun,
            determiner=determiner,
            plural=plural,
            number=number,
            adjective=rng.choice(fitting) if fitting and self.chance(0.35) else None,
        )

    def owned(self, noun: Noun) -> NounPhrase:
        """das rote Auto des Lehrers"""
        owner = NounPhrase(self.rng.choice(PERSONS), self.rng.choice(("der", "mein", "unser")))
        return dataclasses.replace(self.noun_phrase(noun, determiners="der", numbers=False), owner=owner)

    def subject(self, animal: bool = False) -> Nominal:
        kind = self.rng.random()
        if kind < 0.35:
            return self.rng.choice(SUBJECT_PRONOUNS)
        if kind < 0.45:
            return g.Word(name := self.rng.choice(NAMES), name)
        noun = self.rng.choice(PERSONS + ANIMALS if animal else PERSONS)
        determiners = "der ein mein dein sein unser dies" + (" jed" if self.chance(0.1) else "")
        phrase = self.noun_phrase(noun, determiners=determiners)
        return dataclasses.replace(phrase, plural=False) if phrase.determiner == "jed" else phrase

    def person(self, case: str, subject: Nominal) -> Nominal:
        """A person as object; a pronoun never of the subject's own person (`wir sehen mich`)."""
        kind = self.rng.random()
        if kind < 0.3:
            choices = ACCUSATIVE_PRONOUNS if case == "acc" else DATIVE_PRONOUNS
            own = subject.agreement % 3 if isinstance(subject, Pronoun) else None
            return self.rng.choice([pronoun for pronoun in choices if pronoun.agreement % 3 != own])
        if kind < 0.4:
            name = self.rng.choice([name for name in NAMES if name != subject.de("nom")])
            return g.Word(name, name)
        return self.noun_phrase(self.other(PERSONS, subject), numbers=False)

    def other(self, nouns: list[Noun], *others: Nominal | None) -> Noun:
        """A noun that none of `others` uses already."""
        used = [phrase.noun.en for phrase in others if isinstance(phrase, NounPhrase)]
        return self.rng.choice([noun for noun in nouns if noun.en not in used])

    def object(self, verb: Verb, subject: Nominal, negated: bool) -> Nominal:
        kinds = verb.objects.split()
        nouns = [noun for noun in NOUNS if noun.kind in kinds]
        if "person" in kinds and self.chance(0.4 if len(kinds) > 1 else 0.8) and not negated:
            return self.person("dat" if verb.frame == "dative" else "acc", subject)
        noun = self.other(nouns, subject)
        if negated:
            return self.noun_phrase(noun, determiners="der mein dein sein dies kein kein kein", numbers=False)
        if noun.kind in ("vehicle", "clothes", "room", "text", "thing") and self.chance(0.08):
            return self.owned(noun)
        return self.noun_phrase(noun)

    # what happens

    def time(self, *tenses: str) -> Time:
        return self.rng.choice([time for time in TIMES if time.tense in tenses])

    def event(
        self,
        *,
        verb: Verb | None = None,
        subject: Nominal | None = None,
        tense: str = "",
        bare: bool = False,
        negatable: bool = True,
    ) -> Clause:
        """A clause with a full verb; `bare` leaves out the adverbials, `tense` fixes the tense."""
        rng = self.rng
        verb = verb or rng.choice(EVENTS)
        subject = subject or self.subject(verb.animal)
        negated = negatable and self.chance(0.15)
        modal = None
        time = None
        if not tense:
            tense = rng.choice(["present", "past", "past"] + TENSES[verb.aspect])
            if tense in ("future", "progressive"):
                time = self.time(tense)  # without an adverbial, German present is English present
        if not (bare or time) and verb.aspect != "state" and self.chance(0.45):
            time = self.time(tense)
        if verb.aspect == "action" and tense != "progressive" and self.chance(0.2):
            modal = rng.choice(PAST_MODALS if tense == "past" else g.MODALS)
        clause = Clause(subject, verb, time=time, modal=modal, tense=tense, negated=negated)
        if verb.frame in ("accusative", "both"):
            accusative = self.object(verb, subject, negated)
            if verb.frame == "both":
                dative = self.person("dat", subject)
                clause = dataclasses.replace(clause, dative=dative)
                if isinstance(accusative, NounPhrase) and accusative.owner:
                    accusative = self.noun_phrase(accusative.noun, numbers=False)
            clause = dataclasses.replace(clause, accusative=accusative)
        elif verb.frame == "dative":
            clause = dataclasses.replace(clause, dative=self.object(verb, subject, False))
        elif verb.frame == "goal":
            clause = dataclasses.replace(clause, goal=rng.choice(PLACES))
        if bare:
            return clause
        if verb.frame in ("none", "accusative") and verb.aspect == "action" and self.chance(0.2):
            clause = dataclasses.replace(clause, place=rng.choice(PLACES))
        if verb.frame in ("none", "goal") and not clause.place and self.chance(0.25):
            clause = dataclasses.replace(clause, companion=self.person("dat", subject))
        if tense == "present" and verb.aspect != "state" and not (time or modal or negated) and self.chance(0.4):
            clause = dataclasses.replace(clause, frequency=rng.choice(FREQUENCIES))
        return clause

    def state(self, tense: str = "") -> Clause:
        """tired, older than, as old as, twenty-one years old, costs twenty-one euros."""
        rng = self.rng
        tense = tense or rng.choice(("present", "present", "past"))
        kind = rng.random()
        noun = rng.choice(PERSONS + ANIMALS + THINGS)
        subject: Nominal = self.noun_phrase(noun, determiners="der mein dein sein unser dies", numbers=False)
        if kind < 0.2:
            n = rng.randint(2, 99)
            price = State(f"{german_number(n)} Euro", f"{english_number(n)} euros", "kosten")
            things = self.noun_phrase(rng.choice(THINGS), determiners="der dies mein", numbers=False)
            return Clause(things, state=price)
        if kind < 0.4:
            n = rng.randint(2, 99)
            age = State(f"{german_number(n)} Jahre alt", f"{english_number(n)} years old")
            who = self.subject()
            who = dataclasses.replace(who, adjective=None) if isinstance(who, NounPhrase) else who
            return Clause(who, state=age, tense=tense)
        fitting = [adjective for adjective in ADJECTIVES if noun.kind in adjective.kinds.split()]
        if kind < 0.65:
            compared = [adjective for adjective in fitting if adjective.comparative]
            adjective = rng.choice(compared)
            same_kind = [other for other in NOUNS if other.kind == noun.kind and other.en != noun.en]
            other = self.noun_phrase(rng.choice(same_kind), determiners="der mein dein sein unser", numbers=False)
            state = State(f"{adjective.comparative} als {other.de('nom')}", f"{adjective.than} than {other.en()}")
            if self.chance(0.4):
                state = State(f"so {adjective.de} wie {other.de('nom')}", f"as {adjective.en} as {other.en()}")
            return Clause(dataclasses.replace(subject, adjective=None), state=state, tense=tense)
        if noun.kind == "person" and self.chance(0.5):
            subject = rng.choice(SUBJECT_PRONOUNS)
        elif isinstance(subject, NounPhrase):
            subject = dataclasses.replace(subject, adjective=None)
        adjective = rng.choice(fitting)
        passing = adjective.de in ("müde", "krank", "glücklich")
        time = self.time(tense) if passing and tense == "past" and self.chance(0.5) else None
        return Clause(
            subject, state=State(adjective.de, adjective.en), tense=tense, negated=self.chance(0.2), time=time
        )

    def passive(self) -> Clause:
        verb = self.rng.choice(PASSIVES)
        nouns = [noun for noun in NOUNS if noun.kind in verb.objects.split()]
        agent = self.noun_phrase(self.rng.choice(PERSONS), determiners="der ein mein unser", numbers=False)
        subject = self.noun_phrase(self.other(nouns, agent))
        tense = self.rng.choice(("present", "past"))
        time = self.time(tense) if self.chance(0.3) else None
        return Clause(subject, verb, agent=agent, tense=tense, time=time)

    def weather(self, tense: str) -> Clause:
        """Rain now is progressive in English."""
        verb = self.rng.choice(BY_FRAME["weather"])
        return Clause(g.ES, verb, tense="past" if tense == "past" else "progressive")

    def infinitive(self, purpose: bool) -> Clause:
        """versucht, das Fenster aufzumachen; geht in die Stadt, um einzukaufen."""
        frame = "goal" if purpose else "infinitive"
        tense = self.rng.choice(("present", "past"))
        outer = self.event(verb=self.rng.choice(BY_FRAME[frame]), tense=tense, bare=True, negatable=False)
        outer = dataclasses.replace(outer, modal=None)
        agentive = [
            verb
            for verb in EVENTS
            if verb.aspect == "action" and verb.frame != "reflexive" and not (purpose and verb.frame == "goal")
        ]
        inner = self.event(
            verb=self.rng.choice(agentive), subject=outer.subject, tense="present", bare=True, negatable=False
        )
        inner = dataclasses.replace(inner, modal=None)
        time = self.time(tense) if self.chance(0.3) else None
        return dataclasses.replace(outer, time=time, infinitive=Infinitive(inner, purpose))

    def relative(self) -> Clause:
        """The subject carries a relative clause."""
        rng = self.rng
        verb = rng.choice([verb for verb in EVENTS if verb.frame != "reflexive"])
        clause = self.event(verb=verb, tense=rng.choice(("present", "past")))
        if not isinstance(clause.subject, NounPhrase):
            noun = rng.choice(PERSONS)
            clause = dataclasses.replace(clause, subject=self.noun_phrase(noun, determiners="der dies"))
        head = clause.subject
        assert isinstance(head, NounPhrase)
        tense = rng.choice(("present", "past"))
        if self.chance(0.6):
            inner = self.event(verb=self.other_verb(clause, head), subject=head, tense=tense, bare=True)
            relative = Relative(dataclasses.replace(inner, modal=None), "nom")
        else:
            wanted = "dative" if self.chance(0.3) else "accusative"
            verbs = [verb for verb in BY_FRAME[wanted] if head.noun.kind in verb.objects.split()]
            subject = rng.choice(UNAMBIGUOUS_SUBJECTS)
            inner = Clause(subject, rng.choice(verbs), tense=tense)
            relative = Relative(inner, "dat" if wanted == "dative" else "acc")
        if head.owner or head.determiner in ("jed",):
            return clause
        return dataclasses.replace(clause, subject=dataclasses.replace(head, relative=relative))

    def other_verb(self, clause: Clause, head: NounPhrase) -> Verb:
        animal = head.noun.kind == "animal"
        return self.rng.choice([verb for verb in EVENTS if verb is not clause.verb and (verb.animal or not animal)])

    # sentences

    def front(self, clause: Clause) -> str:
        """What German puts first. An object only if its form says that it is one: masculine singular."""
        choices = ["subject"]
        if clause.time:
            choices += ["time"]
        if clause.place and not clause.negated:
            choices += ["place"]
        accusative = clause.accusative
        if (
            isinstance(accusative, NounPhrase)
            and accusative.gender == "m"
            and accusative.determiner in ("der", "mein", "dein", "sein", "unser", "dies")
            and not isinstance(clause.subject, Pronoun)
            and not clause.negated
            and not clause.dative
            and self.chance(0.5)
        ):
            choices += ["accusative"]
        return self.rng.choice(choices)

    def statement(self) -> Pair:
        clause = self.event()
        return g.statement(clause, self.front(clause))

    def copula(self) -> Pair:
        clause = self.state()
        return g.yes_no_question(clause) if self.chance(0.15) else g.statement(clause)

    def passive_statement(self) -> Pair:
        clause = self.passive()
        return g.statement(clause, self.front(clause))

    def yes_no(self) -> Pair:
        return g.yes_no_question(self.event(negatable=False))

    def wh(self) -> Pair:
        kind = self.rng.choice(("wo", "wann", "warum", "wer", "object"))
        if kind == "wer":
            return g.subject_question(self.event(subject=g.WHO, negatable=False))
        if kind == "object":
            frame = self.rng.choice(("accusative", "accusative", "dative"))
            verb = self.rng.choice(BY_FRAME[frame])
            asked = g.WHO if "person" in verb.objects.split() else g.WHAT
            clause = dataclasses.replace(self.event(verb=verb, negatable=False), **{frame: asked})
            return g.object_question(dataclasses.replace(clause, frequency=None), frame)
        if kind == "warum":
            return g.adverb_question(self.event(negatable=False), ("warum", "why"))
        verb = self.rng.choice([verb for verb in EVENTS if verb.aspect != "state" and verb.frame != "goal"])
        if kind == "wo":
            clause = dataclasses.replace(self.event(verb=verb, negatable=False), place=None, frequency=None)
            return g.adverb_question(clause, ("wo", "where"))
        tense = self.rng.choice(("present", "past"))
        return g.adverb_question(self.event(verb=verb, tense=tense, bare=True, negatable=False), ("wann", "when"))

    def reason(self) -> Pair:
        """weil, obwohl, wenn with an event, a state or the weather."""
        conjunction = self.rng.choice((("weil", "because"), ("obwohl", "although"), ("wenn", "when")))
        tense = "present" if conjunction[0] == "wenn" else self.rng.choice(("present", "past"))
        main = self.event(tense=tense)
        kind = self.rng.random()
        if kind < 0.5:
            side = self.event(tense=tense, bare=True)
        elif kind < 0.8:
            side = self.state(tense)
        else:
            side = self.weather(tense)
        return g.subordinate(main, conjunction, side, self.chance(0.4))

    def reported(self) -> Pair:
        """Ich glaube, dass ...; ich weiß nicht, ob ..."""
        matrix = self.event(verb=self.rng.choice(BY_FRAME["clause"]), tense="present", bare=True, negatable=False)
        matrix = dataclasses.replace(matrix, modal=None)
        assert matrix.verb is not None
        clause = self.state() if self.chance(0.15) else self.event()
        if matrix.verb.de == "wissen" and self.chance(0.5):
            return g.subordinate(dataclasses.replace(matrix, negated=True), ("ob", "whether"), clause, False)
        return g.subordinate(matrix, ("dass", "that"), clause, False)

    def infinitive_statement(self) -> Pair:
        clause = self.infinitive(purpose=self.chance(0.4))
        return g.statement(clause, "time" if clause.time else "subject")

    def relative_statement(self) -> Pair:
        return g.statement(self.relative())

    def coordinated(self) -> Pair:
        tense = self.rng.choice(("present", "past"))
        conjunction = self.rng.choice((("und", "and"), ("aber", "but")))
        return g.coordination(self.event(tense=tense, bare=True), conjunction, self.event(tense=tense, bare=True))

    def sentence(self) -> Pair:
        kinds = {
            self.statement: 30,
            self.copula: 12,
            self.passive_statement: 7,
            self.yes_no: 7,
            self.wh: 8,
            self.reason: 12,
            self.reported: 8,
            self.infinitive_statement: 8,
            self.relative_statement: 8,
            self.coordinated: 4,
        }
        return self.rng.choices(list(kinds), list(kinds.values()))[0]()


def distinct_pairs(seed: int) -> Iterator[Pair]:
    """Endless pairs of which no two share the German or the English sentence."""
    sampler, seen = Sampler(seed), set[str]()
    while True:
        de, en = sampler.sentence()
        if de not in seen and en not in seen:
            seen |= {de, en}
            yield de, en


def splits(seed: int = 1, train: int = 12000, valid: int = 500, test: int = 500) -> Splits:
    """test and valid are drawn first, so that a smaller training set changes neither."""
    pairs = distinct_pairs(seed)
    sizes = {"test": test, "valid": valid, "train": train}
    return {name: [next(pairs) for _ in range(size)] for name, size in sizes.items()}
