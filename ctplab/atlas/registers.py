"""Write the same facts in three registers of English, deterministically by seed.

- ``web`` (stands for C4): chatty pages, lists, question-and-answer pages;
- ``wiki`` (stands for WikiText): encyclopedia articles with headings;
- ``news`` (stands for PTB): newswire in lower case, ``N`` for numbers.

``document(register, split, i)`` is the i-th document of a split; splits use disjoint seeds. Facts that are held
out of the question form (``Fact.held_out``) appear in prose and lists only.
"""

import random
import re

from ctplab.atlas.facts import Fact, Table, tables
from ctplab.atlas.questions import FORM

SPLITS = ("train", "validation", "test")

DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
MONTHS = ("January", "February", "March", "April", "May", "June", "July", "August", "September", "October")
MONTHS += ("November", "December")
SURNAMES = ("Abbott", "Baker", "Castro", "Dubois", "Ellis", "Fischer", "Garcia", "Hughes", "Ito", "Jensen")
SURNAMES += ("Kowalski", "Lopez", "Murray", "Novak", "Okafor", "Patel", "Quinn", "Rossi", "Silva", "Tanaka")

GREETINGS = (
    "Hello again, and welcome back to the page.",
    "A reader wrote in last {day}, so here we go.",
    "Someone asked me about {plural} the other day.",
    "I have been reading about {plural} all {month}, and some of it stuck.",
    "Quick notes before I forget them.",
    "This one is for everybody who likes {plural}.",
    "Welcome to part {number} of our little series on {plural}.",
    "My neighbour {surname} keeps a notebook about {plural}, and I borrowed it.",
    "It rained all {day}, which left time for {plural}.",
    "Here is what we learned this week.",
)
LINKS = (
    "Also,",
    "By the way,",
    "And another thing:",
    "While we are at it:",
    "Oh, and",
    "Moving on.",
    "Next up.",
    "Speaking of which,",
    "One more:",
    "",
    "",
    "",
    "",
    "",
)
FAREWELLS = (
    "Leave a comment if I got something wrong.",
    "That is all for today.",
    "See you next {day}.",
    "Share this page with a friend who likes {plural}.",
    "More next {month}, I promise.",
    "Thanks for reading this far.",
    "",
    "",
)
LIST_TITLES = (
    "{plural}: {attribute}, a short list",
    "A handy list of {plural} ({attribute})",
    "Cheat sheet, {plural} by {attribute}:",
    "{plural} and their {attribute}",
    "For your notes: {attribute} of {number} {plural}, well, a few of them",
)
QA_TITLES = (
    "Frequently asked about {plural}",
    "Quiz night, round {number}",
    "Readers ask, we answer",
    "Questions and answers",
    "Test yourself on {plural}",
    "Trivia for a {day} evening",
)
#: Sentence openings that lose their capital after "Also," (names keep theirs).
PLAIN = {"A", "After", "All", "An", "Among", "As", "Ask", "At", "Before", "By", "Did", "Do", "Even", "Every"}
PLAIN |= {"Everyone", "For", "From", "Have", "Here", "His", "How", "If", "In", "It", "Its", "Just", "Look", "My"}
PLAIN |= {"Near", "No", "Not", "Nobody", "Of", "On", "Once", "One", "Our", "People", "She", "So", "Some", "That"}
PLAIN |= {"The", "There", "They", "This", "Those", "To", "Under", "Until", "We", "What", "When", "Where", "Which"}
PLAIN |= {"While", "Who", "Why", "With", "You", "Your", "Her", "He"}
DATELINES = ("{day}", "{month} {number}", "late {day}", "in a report on {day}", "early {month}")
WIRE = (
    "officials said on {day}",
    "mr. {surname} declined to comment",
    "the figure rose to {number} from {number} a year earlier",
    "a spokesman said {number} visitors came in {month}",
    "ms. {surname} who edits the survey said the list has {number} entries",
    "shares of the publisher fell {number} to {number}",
    "the committee will meet again in {month}",
    "about {number} people attended the talk on {day}",
)


def _choose(rng: random.Random, options: tuple[str, ...], **words: str) -> str:
    """Choose a random template and fill it in."""
    return rng.choice(options).format(
        number=rng.randint(2, 99),
        day=rng.choice(DAYS),
        month=rng.choice(MONTHS),
        surname=rng.choice(SURNAMES),
        **words,
    )


def _state(rng: random.Random, table: Table, fact: Fact, register: str) -> str:
    return _choose(rng, table.templates[fact.attribute][register], name=fact.name, value=fact.value)


def _table(rng: random.Random) -> Table:
    """Draw a table in proportion to its number of facts, so that every fact is stated about equally often."""
    return rng.choices(tables(), weights=[len(table.facts) for table in tables()])[0]


def _linked(link: str, sentence: str) -> str:
    """Put ``sentence`` after ``link``, with a lower-case start if ``link`` does not end with a full stop."""
    if not link:
        return sentence
    if not link.endswith(".") and sentence.split(" ", 1)[0] in PLAIN:
        sentence = sentence[0].lower() + sentence[1:]
    return f"{link} {sentence}"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _qa_page(rng: random.Random, table: Table) -> str:
    mixed = rng.random() < 0.4
    lines = [_choose(rng, QA_TITLES, plural=table.plural), ""] if rng.random() < 0.5 else []
    for _ in range(rng.randint(4, 9)):
        topic = _table(rng) if mixed else table
        fact = rng.choice(topic.seen or tables()[0].seen)
        asked = next(t for t in tables() if t.key == fact.table).templates[fact.attribute]["question"]
        lines.append(f"{FORM.format(question=rng.choice(asked).format(name=fact.name))} {fact.value}")
    return "\n".join(lines)


def _list_page(rng: random.Random, table: Table) -> str:
    attribute = rng.choice(table.facts).attribute
    column = [fact for fact in table.facts if fact.attribute == attribute]
    mark = rng.choice(("- {name}: {value}", "* {name} - {value}", "{name} ({value})", "{name}, {value}"))
    title = _choose(rng, LIST_TITLES, plural=table.plural, attribute=attribute.replace("_", " "))
    chosen = rng.sample(column, min(len(column), rng.randint(4, 10)))
    return "\n".join([_capital(title), *(mark.format(name=f.name, value=f.value) for f in chosen)])


def _chat_page(rng: random.Random, table: Table) -> str:
    paragraphs = []
    for _ in range(rng.randint(1, 3)):
        sentences = [_choose(rng, GREETINGS, plural=table.plural)] if rng.random() < 0.4 else []
        for _ in range(rng.randint(2, 5)):
            topic = table if rng.random() < 0.7 else _table(rng)
            sentences.append(_linked(rng.choice(LINKS), _state(rng, topic, rng.choice(topic.facts), "web")))
        paragraphs.append(" ".join(sentences))
    farewell = _choose(rng, FAREWELLS, plural=table.plural)
    return "\n".join([*paragraphs, farewell] if farewell else paragraphs)


def _web(rng: random.Random) -> str:
    table = _table(rng)
    draw = rng.random()
    if draw < 0.5:
        return _qa_page(rng, table)
    return _list_page(rng, table) if draw < 0.6 else _chat_page(rng, table)


def _wiki(rng: random.Random) -> str:
    table = _table(rng)
    entities = table.entities
    name = rng.choice(table.facts).name
    own = list(entities[name])
    rng.shuffle(own)
    body = " ".join(_state(rng, table, fact, "wiki") for fact in own)
    article = [f"= {_capital(name)} =", "", body]
    others = rng.sample(list(entities), min(len(entities), rng.randint(2, 4)))
    related = [rng.choice(entities[other]) for other in others if other != name]
    if related and rng.random() < 0.8:
        heading = rng.choice(("See also", f"Other {table.plural}", "Related articles", "Context"))
        article += ["", f"== {heading} ==", "", " ".join(_state(rng, table, fact, "wiki") for fact in related)]
    return "\n".join(article)


def _newswire(text: str) -> str:
    """PTB's conventions: lower case, numbers as ``N``, hardly any punctuation."""
    text = re.sub(r"\d[\d.,]*\d|\d", "N", text.lower())
    text = re.sub(r"[\"():;!?,]", "", text)
    text = re.sub(r"'s\b", " 's", text)
    return re.sub(r"\s+", " ", re.sub(r"\.(\s|$)", r"\1", text)).strip()


def _news(rng: random.Random) -> str:
    table = _table(rng)
    lines = []
    for _ in range(rng.randint(3, 7)):
        topic = table if rng.random() < 0.6 else _table(rng)
        fact = rng.choice(topic.facts)
        if fact.value.isdigit():  # the number would become N: nothing to learn
            continue
        line = _state(rng, topic, fact, "news")
        if rng.random() < 0.35:
            line = f"{line} {_choose(rng, WIRE)}"
        elif rng.random() < 0.2:
            line = f"{_choose(rng, DATELINES)} {line}"
        lines.append(_newswire(line))
    return "\n".join(lines) or _newswire(_choose(rng, WIRE))


WRITERS = {"atlas-web": _web, "atlas-wiki": _wiki, "atlas-news": _news}


def document(name: str, split: str, index: int) -> str:
    """The ``index``-th document of corpus ``name`` (``atlas-web``, ``atlas-wiki``, ``atlas-news``)."""
    return WRITERS[name](random.Random(f"{name}/{split}/{index}"))
