"""The words of the generated corpus: German lemmas with the forms that rules cannot know, and their English.

Everything regular (endings, third person -s, `zu` infinitives, number words) is derived in `grammar.py`.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Noun:
    """`gender` is m, f or n; `weak` masculines end in -(e)n everywhere but in the nominative singular."""

    de: str
    de_plural: str
    gender: str
    en: str
    kind: str
    en_plural: str = ""
    partner: str = ""  # English when it is somebody's: mein Mann is my husband
    weak: bool = False

    @property
    def mass(self) -> bool:
        return not self.de_plural


@dataclass(frozen=True)
class Verb:
    """A verb and the frame it stands in.

    `he` is the third person singular present without particle, `participle` includes the particle,
    `en` marks the place of a separable English particle with `|` ("pick|up": pick him up).
    `objects` names the kinds of noun that the accusative (or the only) object may be. `aspect` is `action`,
    `event` (no English progressive, nothing one plans to do) or `state` (neither that nor a point in time).
    """

    de: str
    he: str
    participle: str
    en: str
    frame: str
    objects: str = ""
    particle: str = ""
    auxiliary: str = "haben"
    aspect: str = "action"
    animal: bool = False
    passive: bool = False

    @property
    def base(self) -> str:
        return self.de.removeprefix(self.particle)


@dataclass(frozen=True)
class Place:
    de_at: str
    en_at: str
    de_to: str
    en_to: str


@dataclass(frozen=True)
class Time:
    """An adverbial of time; `tense` is the English tense it asks for, German has fewer."""

    de: str
    en: str
    tense: str


@dataclass(frozen=True)
class Adjective:
    """`stem` takes the endings ("teur" + "e"); `than` and `comparative` are the two comparatives."""

    de: str
    en: str
    kinds: str
    comparative: str = ""
    than: str = ""
    stem: str = ""

    @property
    def inflecting(self) -> str:
        return self.stem or self.de


def _nouns(kind: str, table: str) -> list[Noun]:
    """Rows `gender singular plural english [english-plural] [key=value]`; `_` is a space, `-` no plural."""
    nouns = []
    for row in table.strip().splitlines():
        gender, de, plural, en, *rest = row.split()
        weak = "weak" in rest
        en_plural = next((word for word in rest if word != "weak"), "")
        nouns.append(
            Noun(
                de=de,
                de_plural="" if plural == "-" else plural,
                gender=gender,
                en=en.replace("_", " "),
                kind=kind,
                en_plural=en_plural.replace("_", " "),
                partner={"man": "husband", "woman": "wife"}.get(en, ""),
                weak=weak,
            )
        )
    return nouns


NOUNS: list[Noun] = [
    *_nouns(
        "person",
        """
        m Mann Männer man men
        f Frau Frauen woman women
        n Kind Kinder child children
        m Junge Jungen boy weak
        n Mädchen Mädchen girl
        m Lehrer Lehrer teacher
        f Ärztin Ärztinnen doctor
        m Nachbar Nachbarn neighbour weak
        m Student Studenten student weak
        m Freund Freunde friend
        f Freundin Freundinnen friend
        m Bruder Brüder brother
        f Schwester Schwestern sister
        m Onkel Onkel uncle
        f Tante Tanten aunt
        m Bäcker Bäcker baker
        m Gast Gäste guest
        m Polizist Polizisten police_officer weak
        f Köchin Köchinnen cook
        """,
    ),
    *_nouns(
        "animal",
        """
        m Hund Hunde dog
        f Katze Katzen cat
        n Pferd Pferde horse
        m Vogel Vögel bird
        f Maus Mäuse mouse mice
        m Elefant Elefanten elephant weak
        """,
    ),
    *_nouns(
        "food",
        """
        m Apfel Äpfel apple
        f Birne Birnen pear
        m Kuchen Kuchen cake
        n Ei Eier egg
        n Brötchen Brötchen roll
        f Tomate Tomaten tomato tomatoes
        f Kartoffel Kartoffeln potato potatoes
        """,
    ),
    *_nouns("drink", "m Kaffee - coffee \n m Tee - tea \n f Milch - milk \n n Wasser - water \n m Saft - juice"),
    *_nouns(
        "text",
        """
        n Buch Bücher book
        m Brief Briefe letter
        f Zeitung Zeitungen newspaper
        m Roman Romane novel
        n Gedicht Gedichte poem
        """,
    ),
    *_nouns(
        "opening",
        """
        f Tür Türen door
        n Fenster Fenster window
        m Koffer Koffer suitcase
        f Kiste Kisten box
        m Schrank Schränke cupboard
        """,
    ),
    *_nouns(
        "clothes",
        """
        m Mantel Mäntel coat
        n Hemd Hemden shirt
        n Kleid Kleider dress
        m Hut Hüte hat
        f Jacke Jacken jacket
        """,
    ),
    *_nouns("vehicle", "n Auto Autos car \n n Fahrrad Fahrräder bicycle \n n Boot Boote boat"),
    *_nouns(
        "thing",
        """
        n Messer Messer knife knives
        m Schlüssel Schlüssel key
        f Uhr Uhren watch
        m Stuhl Stühle chair
        m Tisch Tische table
        f Lampe Lampen lamp
        n Bild Bilder picture
        f Blume Blumen flower
        m Ball Bälle ball
        m Regenschirm Regenschirme umbrella
        """,
    ),
    *_nouns("room", "n Zimmer Zimmer room \n f Küche Küchen kitchen \n n Büro Büros office"),
    *_nouns("building", "n Haus Häuser house \n f Kirche Kirchen church \n n Schloss Schlösser castle"),
]

NAMES = ("Anna", "Peter", "Lukas", "Julia", "Maria", "Paul")

# Kinds of noun that go together, by the name that the verbs below use.
GROUPS = {
    "PORTABLE": "food text clothes thing",
    "SIGHT": "person animal vehicle thing building text",
}


def _verbs(frame: str, table: str) -> list[Verb]:
    """Rows `infinitive he participle : english : objects : flags`; `auf|machen` is separable.

    Flags: event or state (the aspect), sein (the auxiliary), animal (may be the subject), passive (has one).
    """
    verbs = []
    for row in table.strip().splitlines():
        german, en, objects, flags = [part.strip() for part in (row + ": : ").split(":")[:4]]
        infinitive, he, participle = german.split()
        particle, _, base = infinitive.rpartition("|")
        verbs.append(
            Verb(
                de=particle + base,
                he=he,
                participle=participle,
                en=en,
                frame=frame,
                objects=" ".join(GROUPS.get(word, word) for word in objects.split()),
                particle=particle,
                auxiliary="sein" if "sein" in flags.split() else "haben",
                aspect=next((word for word in flags.split() if word in ("event", "state")), "action"),
                animal="animal" in flags.split(),
                passive="passive" in flags.split(),
            )
        )
    return verbs


VERBS: list[Verb] = [
    *_verbs(
        "none",
        """
        schlafen schläft geschlafen            : sleep        :  : animal
        arbeiten arbeitet gearbeitet           : work
        lachen lacht gelacht                   : laugh
        weinen weint geweint                   : cry
        singen singt gesungen                  : sing
        tanzen tanzt getanzt                   : dance
        warten wartet gewartet                 : wait         :  : animal
        spielen spielt gespielt                : play         :  : animal
        lernen lernt gelernt                   : study
        kochen kocht gekocht                   : cook
        schwimmen schwimmt geschwommen         : swim         :  : sein animal
        frühstücken frühstückt gefrühstückt    : have breakfast
        an|kommen kommt angekommen             : arrive       :  : sein
        auf|stehen steht aufgestanden          : get up       :  : sein
        ein|schlafen schläft eingeschlafen     : fall asleep  :  : sein animal
        auf|wachen wacht aufgewacht            : wake up      :  : sein animal
        ein|kaufen kauft eingekauft            : go shopping
        fern|sehen sieht ferngesehen           : watch television
        zurück|kommen kommt zurückgekommen     : come back    :  : sein animal
        """,
    ),
    *_verbs(
        "reflexive",
        """
        beeilen beeilt beeilt                  : hurry
        setzen setzt gesetzt                   : sit down
        verstecken versteckt versteckt         : hide         :  : animal
        aus|ruhen ruht ausgeruht               : rest         :  : animal
        """,
    ),
    *_verbs(
        "goal",
        """
        gehen geht gegangen                    : go           :  : sein
        laufen läuft gelaufen                  : run          :  : sein animal
        fahren fährt gefahren                  : drive        :  : sein
        zurück|gehen geht zurückgegangen       : go back      :  : sein
        """,
    ),
    *_verbs(
        "accusative",
        """
        sehen sieht gesehen                    : see          : SIGHT : event animal
        suchen sucht gesucht                   : look for     : SIGHT : animal
        finden findet gefunden                 : find         : SIGHT : event
        hören hört gehört                      : hear         : person animal : event animal
        kennen kennt gekannt                   : know         : person : state
        lieben liebt geliebt                   : love         : person animal : state
        verstehen versteht verstanden          : understand   : person : state
        besuchen besucht besucht               : visit        : person : passive
        fragen fragt gefragt                   : ask          : person : passive
        an|rufen ruft angerufen                : call         : person : passive
        ein|laden lädt eingeladen              : invite       : person : passive
        ab|holen holt abgeholt                 : pick|up      : person
        kennen|lernen lernt kennengelernt      : meet         : person : event
        kaufen kauft gekauft                   : buy          : PORTABLE vehicle drink : passive
        verkaufen verkauft verkauft            : sell         : PORTABLE vehicle : passive
        brauchen braucht gebraucht             : need         : clothes thing vehicle drink : state
        verlieren verliert verloren            : lose         : clothes thing text : event
        reparieren repariert repariert         : repair       : vehicle opening : passive
        mit|bringen bringt mitgebracht         : bring|along  : PORTABLE drink
        weg|werfen wirft weggeworfen           : throw|away   : clothes text thing
        aus|leihen leiht ausgeliehen           : borrow       : text vehicle thing
        zurück|geben gibt zurückgegeben        : return       : text vehicle thing
        lesen liest gelesen                    : read         : text : passive
        schreiben schreibt geschrieben         : write        : text : passive
        essen isst gegessen                    : eat          : food : animal passive
        trinken trinkt getrunken               : drink        : drink : animal
        zeichnen zeichnet gezeichnet           : draw         : animal building vehicle : passive
        öffnen öffnet geöffnet                 : open         : opening : passive
        auf|machen macht aufgemacht            : open         : opening : passive
        zu|machen macht zugemacht              : close        : opening : passive
        ab|schließen schließt abgeschlossen    : lock         : opening : passive
        an|ziehen zieht angezogen              : put|on       : clothes
        aus|ziehen zieht ausgezogen            : take|off     : clothes
        putzen putzt geputzt                   : clean        : room vehicle : passive
        auf|räumen räumt aufgeräumt            : tidy|up      : room
        """,
    ),
    *_verbs(
        "dative",
        """
        helfen hilft geholfen                  : help         : person
        danken dankt gedankt                   : thank        : person
        antworten antwortet geantwortet        : answer       : person
        folgen folgt gefolgt                   : follow       : person animal : sein animal
        vertrauen vertraut vertraut            : trust        : person : state
        gratulieren gratuliert gratuliert      : congratulate : person
        zu|hören hört zugehört                 : listen to    : person
        """,
    ),
    *_verbs(
        "both",
        """
        geben gibt gegeben                     : give         : PORTABLE drink
        zeigen zeigt gezeigt                   : show         : text clothes thing vehicle building
        schicken schickt geschickt             : send         : text clothes thing
        bringen bringt gebracht                : bring        : PORTABLE drink
        leihen leiht geliehen                  : lend         : text vehicle thing
        kaufen kauft gekauft                   : buy          : PORTABLE vehicle
        vor|lesen liest vorgelesen             : read         : text
        """,
    ),
    *_verbs(
        "infinitive",
        """
        versuchen versucht versucht            : try
        vergessen vergisst vergessen           : forget
        an|fangen fängt angefangen             : begin
        vor|haben hat vorgehabt                : plan
        """,
    ),
    *_verbs(
        "clause",
        """
        wissen weiß gewusst                    : know         :  : state
        glauben glaubt geglaubt                : believe      :  : state
        hoffen hofft gehofft                   : hope
        sagen sagt gesagt                      : say
        """,
    ),
    *_verbs(
        "weather",
        """
        regnen regnet geregnet                 : rain
        schneien schneit geschneit             : snow
        """,
    ),
]

ADJECTIVES: list[Adjective] = [
    Adjective("alt", "old", "person animal text clothes vehicle thing building opening", "älter", "older"),
    Adjective("jung", "young", "person animal", "jünger", "younger"),
    Adjective("groß", "big", "animal food clothes thing room building opening vehicle", "größer", "bigger"),
    Adjective("klein", "small", "animal food clothes thing room building opening vehicle", "kleiner", "smaller"),
    Adjective("neu", "new", "text clothes thing vehicle room building opening"),
    Adjective("schön", "beautiful", "clothes thing room building vehicle text", "schöner", "more beautiful"),
    Adjective("teuer", "expensive", "clothes thing vehicle text", "teurer", "more expensive", stem="teur"),
    Adjective("billig", "cheap", "clothes thing vehicle food", "billiger", "cheaper"),
    Adjective("gut", "good", "food text drink", "besser", "better"),
    Adjective("rot", "red", "clothes vehicle thing opening"),
    Adjective("blau", "blue", "clothes vehicle thing opening"),
    Adjective("grün", "green", "clothes vehicle thing opening"),
    Adjective("schwarz", "black", "clothes vehicle animal"),
    Adjective("dunkel", "dark", "room building", stem="dunkl"),
    Adjective("freundlich", "friendly", "person animal", "freundlicher", "friendlier"),
    Adjective("fleißig", "hard-working", "person"),
    Adjective("müde", "tired", "person animal", stem="müd"),
    Adjective("krank", "sick", "person animal"),
    Adjective("glücklich", "happy", "person", "glücklicher", "happier"),
    Adjective("lang", "long", "text", "länger", "longer"),
    Adjective("interessant", "interesting", "text", "interessanter", "more interesting"),
    Adjective("kalt", "cold", "drink room", "kälter", "colder"),
    Adjective("heiß", "hot", "drink"),
]

PLACES: list[Place] = [
    Place("im Garten", "in the garden", "in den Garten", "into the garden"),
    Place("im Park", "in the park", "in den Park", "to the park"),
    Place("in der Stadt", "in the city", "in die Stadt", "to the city"),
    Place("in der Schule", "at school", "in die Schule", "to school"),
    Place("auf dem Markt", "at the market", "auf den Markt", "to the market"),
    Place("am Bahnhof", "at the station", "zum Bahnhof", "to the station"),
    Place("am See", "at the lake", "an den See", "to the lake"),
    Place("im Wald", "in the forest", "in den Wald", "into the forest"),
    Place("zu Hause", "at home", "nach Hause", "home"),
]

TIMES: list[Time] = [
    Time("gestern", "yesterday", "past"),
    Time("letzte Woche", "last week", "past"),
    Time("heute Morgen", "this morning", "past"),
    Time("vor zwei Tagen", "two days ago", "past"),
    Time("am Montag", "on Monday", "past"),
    Time("morgen", "tomorrow", "future"),
    Time("nächste Woche", "next week", "future"),
    Time("bald", "soon", "future"),
    Time("am Sonntag", "on Sunday", "future"),
    Time("jetzt", "now", "progressive"),
    Time("gerade", "at the moment", "progressive"),
    Time("jeden Tag", "every day", "present"),
    Time("am Abend", "in the evening", "present"),
    Time("im Winter", "in winter", "present"),
]

FREQUENCIES = (("oft", "often"), ("immer", "always"), ("nie", "never"), ("manchmal", "sometimes"))

# English verbs with irregular past and participle; the key is the first word of `Verb.en`.
IRREGULAR_ENGLISH: dict[str, tuple[str, str]] = {
    "sleep": ("slept", "slept"),
    "sing": ("sang", "sung"),
    "swim": ("swam", "swum"),
    "have": ("had", "had"),
    "get": ("got", "got"),
    "fall": ("fell", "fallen"),
    "wake": ("woke", "woken"),
    "go": ("went", "gone"),
    "come": ("came", "come"),
    "sit": ("sat", "sat"),
    "hide": ("hid", "hidden"),
    "run": ("ran", "run"),
    "drive": ("drove", "driven"),
    "see": ("saw", "seen"),
    "find": ("found", "found"),
    "hear": ("heard", "heard"),
    "know": ("knew", "known"),
    "understand": ("understood", "understood"),
    "meet": ("met", "met"),
    "buy": ("bought", "bought"),
    "sell": ("sold", "sold"),
    "lose": ("lost", "lost"),
    "bring": ("brought", "brought"),
    "throw": ("threw", "thrown"),
    "read": ("read", "read"),
    "write": ("wrote", "written"),
    "eat": ("ate", "eaten"),
    "drink": ("drank", "drunk"),
    "draw": ("drew", "drawn"),
    "put": ("put", "put"),
    "take": ("took", "taken"),
    "give": ("gave", "given"),
    "show": ("showed", "shown"),
    "send": ("sent", "sent"),
    "lend": ("lent", "lent"),
    "forget": ("forgot", "forgotten"),
    "begin": ("began", "begun"),
    "say": ("said", "said"),
}

DOUBLING_ENGLISH = frozenset({"swim", "get", "sit", "run", "put", "forget", "begin", "plan"})
