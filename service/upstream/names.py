"""What the name of a value in upstream's JSON means: one table, looked at once for each name."""

from typing import Literal, NamedTuple

from service.upstream.vocabulary import words_in

# Names are compared in lower case, without underscores and hyphens.
# Values under these names are results.
_RESULTS = words_in("""
    output outputs result results resulturl resulturls resultjson taskresult info response
    responsedata data file files fileurl url urls downloadurl video videos videourl videourls audio
    audios audiourl audiourls resultimageurl resultvideourl b64json imagebase64 gcsuri
    bytesbase64encoded sample assets videoinfo content generated creations payload modelurl
    modelurls textureurls renderedimage generatedimages
    artifacts base64 candidates
""")
# Values under these are results, or inputs where upstream repeats the request.
_IMAGES = frozenset(("image", "images", "imageurl", "imageurls"))
# Within a result, models in three dimensions; elsewhere, `model` is what made it.
_MODELS = frozenset(("model", "basemodel", "pbrmodel"))
# Names that begin so hold an echo of the request, a callback URL, a URL of the task or an error.
_ECHO_WORDS = words_in("""
    input origin source stream reference mask face request param prompt metadata model callback
    webhook notify status polling cancel doc help generateparam parent responseurl error
    deleteurl uploadurl detailurl detailsurl
""")
_ECHOES = tuple(_ECHO_WORDS)
# A name that begins so is that of a preview of a result.
_PREVIEWS = ("preview", "thumb", "poster", "placeholder")
# Objects under these may be the parts of a task, with status words of their own.
_PARTS = words_in("""
    task tasks subtasks clips items list parts generation generations jobs children predictions
    shots scenes segments
""")
_TASK_IDS = frozenset(("taskid", "taskuuid", "workid"))
# These may name a task too, or a request, or what a service behind upstream makes of it.
_JOB_IDS = frozenset(("jobid", "predictionid", "generationid", "operationid", "uuid"))
_OTHER_IDS = frozenset(("id", "requestid"))
# A name with one of these ends is that of an id. With one of the others it is no task's: any answer
# has such a value.
_ID_ENDS = ("id", "ids")
_ENVELOPE_WORDS = words_in("""
    requestid requestuuid reqid traceid spanid logid correlationid rayid errorid incidentid userid
    clientid customerid accountid tenantid teamid orgid organizationid organisationid projectid
    appid keyid modelid regionid quotaid paid valid invalid void
""")
_ENVELOPE_ENDS = tuple(_ENVELOPE_WORDS)
# Names that only an answer about a new task has: its place in a queue, and URLs to ask about it.
_PLACES = words_in("queueposition positioninqueue statusurl responseurl pollingurl cancelurl")
# How much of a task is done. progress_percent: novita.ai/docs/api-reference/model-apis-task-result;
# percent: piapi.ai/docs/hailuo-api/generate-video.
_PROGRESS = words_in("""
    progress progresspercent progresspercentage progressrate percent percentage percentcomplete
    percentcompleted completion completionpercent completionpercentage
""")
# For a URL without a known extension: the first of these words that its name contains.
_TYPE_BY_WORD = {"video": "video/mp4", "audio": "audio/mpeg", "image": "image/png"}
_FILE_WORDS = ("file", *_TYPE_BY_WORD)

# Where a text stands: under names of results, of pictures, which may be inputs, or of neither; or
# around the task, where a link under an unknown name is not the task's. BY_NAME: its name tells.
RESULT, PICTURE, UNKNOWN, AROUND, BY_NAME = range(5)
Id = Literal["task", "job", "other"]

CHARACTERS_MAX = 64  # The rest of a name does not count.
ROLES_MAX = 4_096  # Names that are remembered.


class Role(NamedTuple):
    """What one name means for the value under it."""

    key: str
    place: int  # RESULT, PICTURE or UNKNOWN.
    id: Id | None  # What an id under the name may be the id of.
    names_any: bool  # Whether the value may name a task, though the name is not known.
    is_echo: bool
    is_model: bool
    is_preview: bool
    is_url: bool
    is_bare_url: bool  # The name above it tells what the URL is of.
    names_file: bool  # The value may be a path.
    may_hold_link: bool
    may_hold_parts: bool
    is_progress: bool
    is_of_queue: bool  # Only a task that was taken has such a value.
    media_type: str  # Of a file under the name whose URL does not tell.


class _Roles(dict[str, Role]):
    def __missing__(self, name: str) -> Role:
        name = name[:CHARACTERS_MAX]
        role = self.get(name) or _role(name)
        if len(self) < ROLES_MAX:
            self[name] = role
        return role


def _role(name: str) -> Role:
    key = name.replace("_", "").replace("-", "").lower()
    place = RESULT if key in _RESULTS else PICTURE if key in _IMAGES else UNKNOWN
    is_task_id, is_job_id = key in _TASK_IDS, key in _JOB_IDS
    is_url = "url" in key or "uri" in key
    types = (media_type for word, media_type in _TYPE_BY_WORD.items() if word in key)
    return Role(
        key=key,
        place=place,
        id="task" if is_task_id else "job" if is_job_id else "other" if key in _OTHER_IDS else None,
        names_any=key.endswith(_ID_ENDS) and not key.endswith(_ENVELOPE_ENDS),
        is_echo=place == UNKNOWN and key.startswith(_ECHOES),
        is_model=key in _MODELS,
        is_preview=key.startswith(_PREVIEWS),
        is_url=is_url,
        is_bare_url=key in ("url", "urls"),
        names_file=place != UNKNOWN and any(word in key for word in _FILE_WORDS),
        may_hold_link=is_url or place != UNKNOWN or key in _MODELS,
        may_hold_parts=place != UNKNOWN or key in _PARTS,
        is_progress=key in _PROGRESS,
        is_of_queue=key in _PLACES,
        media_type=next(types, "application/octet-stream"),
    )


ROLES = _Roles()  # By name as written.
NO_NAME = ROLES[""]
