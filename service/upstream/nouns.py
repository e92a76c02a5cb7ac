"""The words that texts use for the task of a submission, and what the name of a value says."""

import re
from functools import lru_cache

from service.upstream.vocabulary import words_in

# The weak nouns mean many other things too.
STRONG = words_in("task job generation prediction inference execution workflow request")
WEAK = words_in("operation order work run batch submission render invocation")
PLURALS = {f"{noun}s" for noun in STRONG | WEAK} | {"batches"}
ANY = STRONG | WEAK | PLURALS
# Words for results: behind "your" they mean the task too.
PRODUCTS = words_in("image images video videos song songs audio music picture clip track prompt")
# These may stand between the word for a thing and its id, also in a name: "task id is 4711".
OF_IDS = words_in("id ids uuid guid no num number nr is with key name sn ref handle was")
# A name with one of these is that of a property: no job stands under it.
_PROPERTIES = words_in("""
    type types kind limit limits count counts max min maximum queue quota remaining concurrent
    concurrency per rate timeout seconds minutes size length total allowed available active status
    state error errors code message msg cost price credits tokens used usage capacity policy reset
    class priority time ms duration date at delay estimate estimated eta config options parameters
    params settings model mode format version
""")
# An id behind one of these is not a task's.
OTHERS = words_in("""
    request req trace ray span log correlation reference ref incident error code model version
    organization org project account user team tenant customer client ip host server node pod
    region zone session token support build sha commit date time at until reset api event instance
    worker block tracking case message connection process transaction device site deployment page
    proxy
""")
GOING = words_in("""
    running processing processed pending generating generated rendering rendered executing executed
    working
""")
TAKEN = GOING | words_in("""
    created accepted queued enqueued submitted started scheduled registered launched received
    dispatched taken
""")
# With one of these in it a sentence is about limits, or about the task of somebody else.
LIMITS = words_in("""
    many limit limits limited maximum max quota exceed exceeds exceeded exceeding full concurrent
    concurrently concurrency simultaneous simultaneously capacity per rate throttled most another
    other others previous prior existing
""")
# Before one of these a word of being taken only describes it: "the running queue".
DESCRIBED = LIMITS | words_in(
    "queue queues slot slots pool number count time timeout jobs tasks requests"
)
# A text of only these and a word of being taken says that the task was taken.
FILLERS = words_in("successfully now still and for please is was being been has have ok already")
# Before a word of being taken, these negate it.
NEGATIONS = words_in("""
    not no never none nothing cannot unable fail failed fails failure error errors problem exception
    rejected refused declined cancelled canceled dropped without could until unless if before after
    once when during try retry again resubmit
""")
COUNTS = words_in("one two three four five all any each every no")
# Words of the Chinese services that upstream resells.
TRANSLATED = {
    "任务": " task ", "任務": " task ", "作业": " job ", "订单": " order ", "请求": " request ",
    "已创建": " created ", "已提交": " submitted ", "已接受": " accepted ", "排队中": " queued ",
    "处理中": " processing ", "生成中": " generating ", "运行中": " running ", "未": " not ",
    "无法": " unable ", "失败": " failed ", "过多": " many ", "上限": " limit ", "已满": " full ",
    "限制": " limit ", "创建成功": " created ", "提交成功": " submitted ",
    "\uff0c": ", ", "\u3002": ". ", "\uff1b": "; ", "\uff01": "! ", "\uff1a": ": ", "\u3001": ", ",
}  # fmt: skip
_PART = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")


def parts_of(word: str) -> list[str]:
    """Return the words of a name: `taskId`, `TASK_ID` and `task-id` have two."""
    return [part.lower() for part in _PART.findall(word)]


@lru_cache(maxsize=1_024)
def names_job(name: str) -> bool:
    """Whether a name is that of a job: its value is a job, or a job's id."""
    words = parts_of(name)
    if is_property(name) or "request" in words or "requests" in words:
        return False
    if words and words[0] in WEAK:
        return OF_IDS.issuperset(words[1:])
    return not ANY.difference(WEAK).isdisjoint(words)


def is_property(name: str) -> bool:
    """Whether a name is that of a property of something, such as a limit or a count."""
    return not _PROPERTIES.isdisjoint(parts_of(name))


def counts_jobs(name: str) -> bool:
    """Whether a number under this name counts jobs."""
    return not PLURALS.isdisjoint(parts_of(name))


def says_taken(word: str) -> bool:
    """Whether a status word, or the name of a flag, says that something was taken."""
    return not TAKEN.isdisjoint(parts_of(word)[-1:])


def is_own(words: list[str], at: int) -> bool:
    """Whether a word of a sentence is a noun for the task of a submission, and counts none."""
    word, before = words[at], words[max(0, at - 2) : at]
    if any(each in COUNTS or each.isdigit() for each in before):
        return False
    if word in PLURALS or word in PRODUCTS:
        return "your" in before
    # The weak ones stand also in "in order to" and "maintenance work".
    return word in STRONG or (word in WEAK and (at == 0 or before[-1:] in (["your"], ["new"])))
