"""Looks in what upstream wrote for words that name a task, or say that one was taken.

Only an answer that declined a submission is read so, before the submission is sent again. A doubt
counts as a sign: a second task costs money, and a submission that is lost does not.
"""

import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator

from service.upstream import nouns

NEAR_WORDS = 6
TEXT_CHARS_MAX = 262_144  # Of all texts of an answer. What is not read may name a task.
_ID_CHARS_MIN, _ID_CHARS_MAX = 7, 512
_DIGITS_MIN = 4
_LONG_CHARS = 16  # No plain word is so long.
_OF_TASKS = frozenset(("status", "result", "results", "output", "events"))  # After its id.
_PERSONS = frozenset(("you", "it", "we"))
_TRANSLATED = re.compile("|".join(sorted(nouns.TRANSLATED, key=len, reverse=True)))
# Possessive, so that they take linear time.
_LINK = re.compile(r"\b[a-zA-Z]{2,8}://\S*+")
_TAG = re.compile(r"<(/?)([A-Za-z][\w:-]*+)[^<>]*+>")
_WORD = re.compile(r"[A-Za-z0-9_~]+(?:[-.][A-Za-z0-9_~]+)*")
_CLAUSE_END = re.compile(r"(?<![,.!?])[,.!?]++(?=\s|$)|[\n;(){}\[\]]|\b(?:but|because)\b")
_PHRASES = (
    (re.compile(r"(?i)\b(?:in|to|into|on)[\s_-]+(?:the |a |our |your )?queue\b"), "queued"),
    (re.compile(r"(?i)\bin[\s_-]*progress\b"), "running"),
    (re.compile(r"(?i)\b(while|when|during|whilst) (processing|running)\b"), "error"),
    (re.compile(r"(?i)\bwait(?:ing)? (for|until|till)\b"), "previous"),
    (re.compile("(?i)n['\N{RIGHT SINGLE QUOTATION MARK}]t\\b"), " not"),
)
# In a page, in prose or in JSON that somebody cut: any text behind the name of an id is an id.
_NAMED_ID = re.compile(
    r"(?i)(?<![a-z])(?:task|job|generation|prediction)[ _-]?(?:u?u?ids?|no)[\"'\\]*\s*[:=]\s*"
    r"[\"'\\]*(?!(?:null|none|nil|undefined|n/a)\b)[\w.-]"
)
_ROUTE = re.compile(r"(?i)(^|[/\"'\s])(?:" + "|".join(sorted(nouns.ANY)) + r")/([\w.~%:-]+)")
# These are no ids: a date or a time, a version, a span, a size.
_MEASURE = re.compile(
    r"\d{4}-\d\d-\d\d.*|v?\d+(\.\d+)+\w*|\d+(\.\d+)?[a-z]{1,3}|\d+x\d+|\d{1,2}-\w{3}-\d{2,4}"
)
_DIGIT = re.compile("[0-9]")
_UUID = re.compile(r"[0-9a-f]{8}-?(?:[0-9a-f]{4}-?){3}[0-9a-f]{12}")
# The name of a model, of a region or of a machine is made of such parts.
_MODEL_PART = re.compile(
    r"[a-z]+\d{0,2}[a-z]?|v?\d{1,4}|\d{1,3}[a-z]{1,2}|[a-z]\d{3}|20\d{6}|\d{6}"
)
_OTHERS_ID = re.compile(r"(?:req[a-z]*|org|proj|user|acct|key|ip|trace|sess)[-_]")
_EPOCH = re.compile(r"1[0-9]{9}(?:[0-9]{3})?")

_JOBS = nouns.ANY - {"request", "requests"}
_SINGULARS = _JOBS - nouns.PLURALS
_IDS = frozenset(("id", "uuid", "guid"))
_OF_JOB = re.compile(  # `task_8a1b`
    "(?i)(?:" + "|".join(sorted(_JOBS)) + r")[-_](?=\w*[0-9])\w{3,}(?:[-.]\w+)*"
)

IsSent = Callable[[str], bool]  # Whether a text was sent: what comes back names no new task.


def is_id(text: str) -> bool:
    """Whether a word looks like the id of something: it is no word, no measure and no model."""
    text = text.lower()
    if _UUID.fullmatch(text):
        return True
    if not _ID_CHARS_MIN <= len(text) <= _ID_CHARS_MAX or not _DIGIT.search(text):
        return False
    if text.isdigit():
        return not _EPOCH.fullmatch(text)
    is_measure = _MEASURE.fullmatch(text) or _OTHERS_ID.match(text)
    return not is_measure and not all(map(_MODEL_PART.fullmatch, re.split(r"[-_.~]", text)))


def is_bare_id(text: str) -> bool:
    """Whether a value in the place of a result is an id; a short number counts, too."""
    return is_id(text) or (
        len(text) >= _DIGITS_MIN and text.isdigit() and not _EPOCH.fullmatch(text)
    )


def task_in_path(path: str) -> str | None:
    """Return the task that a path as `…/tasks/{id}` or `…/jobs/{id}/status` names."""
    steps = [step for step in path.split("/") if step]
    if steps and steps[-1].lower() in _OF_TASKS:
        del steps[-1]
    if len(steps) < 2 or steps[-2].lower() not in nouns.ANY:
        return None
    return steps[-1] if _DIGIT.search(steps[-1]) or len(steps[-1]) >= _LONG_CHARS else None


def tell_of_task(text: str, is_sent: IsSent) -> bool:
    """Whether a text names a task, or says that one was taken."""
    steps = _ROUTE.findall(text)
    if _NAMED_ID.search(text) or any(_is_step(mark, step, is_sent) for mark, step in steps):
        return True
    prose = _prose(text)
    for pattern, plain in _PHRASES:
        prose = pattern.sub(plain, prose)
    return _names_id(prose, is_sent) or any(map(_is_taken, _clauses(prose)))


def _is_step(mark: str, step: str, is_sent: IsSent) -> bool:
    """Whether a step of a path behind the name of a route is an id; a help page has none."""
    is_number = mark == "/" and step.isdigit()  # Without a path it is a rate: `tasks/60`.
    return (is_id(step) or is_number) and not is_sent(step)


def _prose(text: str) -> str:
    """Return a text without its links and tags; the name of a tag of XML is that of its value."""
    text = _LINK.sub(" ", text)
    text = _TRANSLATED.sub(lambda match: nouns.TRANSLATED[match[0]], text)
    if "<" not in text:
        return text
    parts: list[str] = []
    end, hidden = 0, ""
    for tag in _TAG.finditer(text):
        name = tag[2].lower()
        if not hidden:
            is_name = len(nouns.parts_of(tag[2])) > 1 or name in nouns.ANY
            parts += (text[end : tag.start()], tag[2] if is_name and not tag[1] else "\n")
            hidden = name if name in ("script", "style") and not tag[1] else ""
        elif tag[1] and name == hidden:
            hidden = ""
        end = tag.end()
    return " ".join([*parts, "" if hidden else text[end:]])


def _words(text: str) -> Iterator[str]:
    """Yield the words of a text in lower case; those with a digit whole and as written."""
    for word in _WORD.findall(text):
        if word.islower() and word.isalpha():
            yield word  # Most are so.
        elif _DIGIT.search(word):
            yield word
        else:
            yield from nouns.parts_of(word)


def _names_id(prose: str, is_sent: IsSent) -> bool:
    words = list(_words(prose))
    jobs = [at for at, word in enumerate(words) if word in _JOBS]
    for at, word in enumerate(words):
        if not _DIGIT.search(word) or is_sent(word):
            continue
        label = _label(words, at)
        if _OF_JOB.fullmatch(word) or (label in _SINGULARS and _is_short_id(word)):
            return True
        if label in nouns.OTHERS or not is_id(word):
            continue
        # `queued as 8a1b2c3d` and `ID: 8a1b2c3d` are enough.
        begin = max(0, at - 2)
        is_labelled = not _IDS.isdisjoint(words[begin:at])
        is_told = is_labelled or not nouns.TAKEN.isdisjoint(words[begin : at + 3])
        if is_told or _near(jobs, at):
            return True
    return False


def _is_short_id(word: str) -> bool:
    """Whether a word behind one for a job is its id: `task 4711`, but not `task 2 of 3`."""
    return len(word) >= _DIGITS_MIN and not _MEASURE.fullmatch(word.lower())


def _label(words: list[str], at: int) -> str:
    """Return the word before an id that says what it is the id of."""
    for word in reversed(words[max(0, at - 4) : at]):
        if word not in nouns.OF_IDS:
            return word
    return ""


def _near(jobs: list[int], at: int) -> list[int]:
    return jobs[bisect_left(jobs, at - NEAR_WORDS) : bisect_right(jobs, at + NEAR_WORDS)]


def _clauses(prose: str) -> Iterator[list[str]]:
    """Yield the words of each clause, and those of its parts around colons."""
    for clause in _CLAUSE_END.split(prose):
        yield list(_words(clause))
        if ":" in clause:
            yield from (list(_words(part)) for part in clause.split(":"))


def _is_taken(words: list[str]) -> bool:
    """Whether a clause says that the task of this submission was taken."""
    if not nouns.TAKEN.isdisjoint(words) and (nouns.TAKEN | nouns.FILLERS).issuperset(words):
        return True
    # What concerns the whole clause is looked for once: it may have 100,000 words.
    limit_at = next((at for at, word in enumerate(words) if word in nouns.LIMITS), len(words))
    is_old = "already" in words
    jobs = [
        at
        for at in range(len(words))
        if nouns.is_own(words, at) and not (is_old and _is_any(words, at))
    ]
    for at, word in enumerate(words):
        if word in nouns.NEGATIONS:
            return False
        if word in nouns.TAKEN and nouns.DESCRIBED.isdisjoint(words[at + 1 : at + 2]):
            is_queued = word == "queued" and not _PERSONS.isdisjoint(words[max(0, at - 3) : at])
            near = _near(jobs, at)
            if is_queued or any(_is_said(words, job, at, limit_at) for job in near):
                return True
    return False


def _is_said(words: list[str], job: int, taken: int, limit_at: int) -> bool:
    """Whether two words of a clause say together that this task was taken."""
    # What follows "your task was queued" takes nothing back.
    if limit_at < (taken if job < taken else len(words)):
        return False
    # `a task is running` may be any; `a task was created` is this one.
    return not (_is_any(words, job) and words[taken] in nouns.GOING)


def _is_any(words: list[str], job: int) -> bool:
    return job > 0 and words[job - 1] in ("a", "an")
