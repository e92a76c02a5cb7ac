"""Checks the rules of this repository that no linter checks.

A rule is a function from a file to complaints. Each rule is also shown a bad sample, because a
check that cannot fail checks nothing.
"""

import ast
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from urllib.parse import unquote

import pytest

from service.settings import CLIENT_VARIABLES, VARIABLES

ROOT = Path(__file__).resolve().parent.parent

FUNCTION_LINES = 40
MODULE_LINES = 350
TEST_MODULE_LINES = 600
POSITIONAL_PARAMETERS = 6
SIZE_TOLERANCE = 0.05

VAGUE_WORDS = re.compile(
    r"(^|_)(common|handler|helper|hook|job|manager|misc|payload|service|util)s?(_|$)"
)
PARTICIPLES = frozenset(
    ("asked", "found", "given", "heard", "kept", "made", "said", "seen", "told", "wanted")
)
PRINTER = "service/cli/streams.py"
LEFTOVER = re.compile(r"\b(TO[D]O|FIX[M]E|XX[X])\b")
STATEMENT = re.compile(r"^--\s*name:\s*([\w-]+)", re.MULTILINE)
SETTING = re.compile(r"\bGENHOOK_[A-Z0-9_]*[A-Z0-9]\b")
SETTINGS_DOCUMENTS = ("docs/settings.md", "README.md")
CODE = re.compile(r"^ *(`{3,}|~{3,}).*?^ *\1|`[^`\n]*`", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\]\(\s*<?([^)\s>]+)|^\[[^\]^][^\]]*\]:\s*<?([^\s>]+)", re.MULTILINE)

Rule = Callable[[str, str], Iterable[str]]
Function = ast.FunctionDef | ast.AsyncFunctionDef


# The files


def texts(*patterns: str) -> dict[str, str]:
    """Return the text of the files that match, by path from the root."""
    files = sorted(path for pattern in patterns for path in ROOT.glob(pattern) if path.is_file())
    return {path.relative_to(ROOT).as_posix(): path.read_text("utf-8") for path in files}


def service() -> dict[str, str]:
    return texts("service/**/*.py")


def python() -> dict[str, str]:
    return service() | texts("tests/**/*.py")


def sources() -> dict[str, str]:
    return python() | texts("service/**/*.sql", "service/**/*.toml", "service/**/*.html")


def statements() -> dict[str, str]:
    return texts("service/store/sql/**/*.sql")


def markdown() -> dict[str, str]:
    return texts("*.md", "docs/**/*.md")


def expect_none(faults: Iterable[str]) -> None:
    """Fail with every complaint on a line of its own."""
    lines = list(faults)
    assert not lines, "\n".join(["", *lines])


def complaints(rule: Rule, files: Mapping[str, str]) -> list[str]:
    return [f"{path}: {fault}" for path, text in files.items() for fault in rule(path, text)]


# The rules


@cache
def tree(text: str) -> ast.Module:
    """The syntax tree of a file, parsed once for all rules."""
    return ast.parse(text)


@cache
def nodes(text: str) -> list[ast.AST]:
    return list(ast.walk(tree(text)))


def functions(text: str) -> Iterator[Function]:
    for node in nodes(text):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def long_functions(_path: str, text: str) -> Iterator[str]:
    for node in functions(text):
        lines = (node.end_lineno or node.lineno) - node.lineno + 1
        if lines > FUNCTION_LINES:
            yield f"{node.name} has {lines} lines; {FUNCTION_LINES} are allowed"


def long_modules(path: str, text: str) -> Iterator[str]:
    limit = TEST_MODULE_LINES if path.startswith("tests/") else MODULE_LINES
    lines = len(text.splitlines())
    if lines > limit:
        yield f"has {lines} lines; {limit} are allowed"


def long_signatures(_path: str, text: str) -> Iterator[str]:
    for node in functions(text):
        names = [a.arg for a in (*node.args.posonlyargs, *node.args.args)]
        count = len(names) - (names[:1] in (["self"], ["cls"]))
        if count > POSITIONAL_PARAMETERS:
            yield f"{node.name} takes {count} positional parameters: a noun is missing"


def undescribed_modules(_path: str, text: str) -> Iterator[str]:
    summary, _, rest = (ast.get_docstring(tree(text)) or "").partition("\n")
    if not summary.endswith("."):
        yield "does not open with a line that says what it does and ends with a full stop"
    elif rest and not rest.startswith("\n"):
        yield "opens with more than one line; leave the second one empty"


def leftovers(_path: str, text: str) -> Iterator[str]:
    for number, line in enumerate(text.splitlines(), start=1):
        if LEFTOVER.search(line):
            yield f"line {number} leaves work for later"


def vague_names(path: str, _text: str) -> Iterator[str]:
    *folders, module = path.removesuffix(".py").split("/")[1:]
    for name in (*folders, module):
        if VAGUE_WORDS.search(name):
            yield f"{name} does not say what it holds"
        if name in sys.stdlib_module_names:
            yield f"{name} is a module of the standard library"


def participles(_path: str, text: str) -> Iterator[str]:
    for node in nodes(text):
        match node:
            case ast.Name(id=name, ctx=ast.Store()) | ast.arg(arg=name):
                pass
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                pass
            case _:
                continue
        if name in PARTICIPLES:
            yield f"line {node.lineno} names something {name}, not by its noun"


def slow_middleware(_path: str, text: str) -> Iterator[str]:
    for node in nodes(text):
        name = getattr(node, "id", None) or getattr(node, "attr", None)
        imported = isinstance(node, ast.alias) and node.name
        if "BaseHTTPMiddleware" in (name, imported):
            yield "uses BaseHTTPMiddleware; write plain ASGI"


def spelled_schemes(_path: str, text: str) -> Iterator[str]:
    """A scheme may be written in any case: `HTTP://` also is plain HTTP."""
    for node in nodes(text):
        if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "startswith":
            starts = [each.value for each in ast.walk(node) if isinstance(each, ast.Constant)]
            if any(re.match("https?:", str(each)) for each in starts):
                yield f"line {node.lineno} reads a scheme by its spelling; use urlsplit"


def loose_ends(_path: str, text: str) -> Iterator[str]:
    r"""In Python `$` also matches before a last line end: a whole text is matched with `\Z`."""
    for node in nodes(text):
        if not (isinstance(node, ast.Constant) and isinstance(node.value, str)):
            continue
        if node.value.startswith("^") and node.value.endswith("$"):
            yield f"line {node.lineno} has a pattern that ends in $; use \\Z"


def stray_prints(path: str, text: str) -> Iterator[str]:
    if path == PRINTER:
        return
    for node in nodes(text):
        if isinstance(node, ast.Name) and node.id == "print":
            yield f"line {node.lineno} prints; only {PRINTER} does"


def names_used(text: str) -> Iterator[str]:
    """Return attributes and whole strings: code names a statement in one of these two ways."""
    for node in nodes(text):
        if isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def unused_statements(modules: Iterable[str]) -> Rule:
    used = {name for text in modules for name in names_used(text)}

    def rule(_path: str, text: str) -> Iterator[str]:
        for name in STATEMENT.findall(text):
            if name.replace("-", "_") not in used:
                yield f"no module uses {name}"

    return rule


def undocumented_settings(code: str, documents: Mapping[str, str]) -> Iterator[str]:
    known = set(SETTING.findall(code))
    for path, text in documents.items():
        named = set(SETTING.findall(text))
        yield from (f"{path} misses {name}" for name in sorted(known - named))
        yield from (f"{path} invents {name}" for name in sorted(named - known))


def imported_by_serve(files: Mapping[str, str]) -> set[str]:
    """Return the modules of the command line that `genhook serve` imports."""
    waiting, modules = ["service/cli/main.py", "service/cli/serve.py"], set()
    while waiting:
        path = waiting.pop()
        if path not in files or path in modules or not path.startswith("service/cli/"):
            continue
        modules.add(path)
        for node in nodes(files[path]):
            if isinstance(node, ast.ImportFrom) and node.module:
                package = node.module.replace(".", "/")
                waiting += [f"{package}.py", *(f"{package}/{each.name}.py" for each in node.names)]
    return modules


def sizes(files: Mapping[str, str]) -> dict[str, int]:
    """Return how many lines the service has, and how many the toolbox."""
    toolbox = {path for path in files if path.startswith(("service/cli/", "service/sandbox/"))}
    toolbox -= imported_by_serve(files)
    lines = {path: len(text.splitlines()) for path, text in files.items()}
    count = sum(lines[path] for path in toolbox)
    return {"service": sum(lines.values()) - count, "toolbox": count}


def misstated_sizes(readme: str, lines: Mapping[str, int]) -> Iterator[str]:
    for name, count in lines.items():
        sentence = re.search(rf"^The {name}\b.* has ([\d,]+)\b", readme, re.MULTILINE)
        stated = int(sentence[1].replace(",", "")) if sentence else 0
        if abs(stated - count) > count * SIZE_TOLERANCE:
            yield f"README.md says that the {name} has {stated} lines; it has {count}"


def broken_links(path: str, text: str) -> Iterator[str]:
    for inline, reference in LINK.findall(CODE.sub("", text)):
        target = unquote(inline or reference).partition("#")[0]
        if not target or re.match(r"[a-z][a-z0-9+.-]*:", target):
            continue
        file = (ROOT / path).parent.joinpath(target).resolve()
        if not (file.exists() and file.is_relative_to(ROOT)):
            yield f"links to {target}, which is not in this repository"


# Each rule holds


def test_the_files_that_the_rules_read_are_found() -> None:
    assert "service/model/ids.py" in service()
    assert {"service/model/ids.py", "tests/test_tidy.py"} <= set(python())
    assert set(python()) <= set(sources())
    assert "README.md" in markdown()


def test_no_function_is_longer_than_forty_lines() -> None:
    expect_none(complaints(long_functions, python()))


def test_no_module_is_longer_than_350_lines_and_no_test_module_than_six_hundred() -> None:
    expect_none(complaints(long_modules, python()))


def test_no_function_takes_more_than_six_positional_parameters() -> None:
    expect_none(complaints(long_signatures, python()))


def test_every_module_opens_with_one_line_that_says_what_it_does() -> None:
    expect_none(complaints(undescribed_modules, service()))


def test_no_file_leaves_work_for_later() -> None:
    expect_none(complaints(leftovers, sources()))


def test_no_module_has_a_vague_name_or_one_of_the_standard_library() -> None:
    expect_none(complaints(vague_names, python()))


def test_no_name_in_the_service_is_a_participle() -> None:
    expect_none(complaints(participles, service()))


def test_nothing_uses_the_slow_middleware() -> None:
    expect_none(complaints(slow_middleware, python()))


def test_no_scheme_of_a_url_is_read_by_its_spelling() -> None:
    expect_none(complaints(spelled_schemes, service()))


def test_no_pattern_for_a_whole_text_lets_a_line_end_through() -> None:
    expect_none(complaints(loose_ends, service()))


def test_nothing_prints_but_the_command_line() -> None:
    expect_none(complaints(stray_prints, python()))


def test_every_named_statement_is_used() -> None:
    expect_none(complaints(unused_statements(service().values()), statements()))


def test_every_setting_is_documented_and_every_documented_setting_exists() -> None:
    code = "\n".join((*VARIABLES, *CLIENT_VARIABLES))
    documents = dict.fromkeys(SETTINGS_DOCUMENTS, "") | texts(*SETTINGS_DOCUMENTS)
    expect_none(undocumented_settings(code, documents))


def test_the_readme_says_how_large_the_service_and_its_toolbox_are() -> None:
    expect_none(misstated_sizes(markdown()["README.md"], sizes(service())))


def test_every_link_to_a_local_file_resolves() -> None:
    expect_none(complaints(broken_links, markdown()))


# Each rule can fail


def function_of(lines: int) -> str:
    return "async def long():\n" + "    pass\n" * (lines - 1)


def test_a_function_of_forty_one_lines_is_found() -> None:
    assert complaints(long_functions, {"a.py": function_of(40)}) == []
    assert complaints(long_functions, {"a.py": function_of(41)}) == [
        "a.py: long has 41 lines; 40 are allowed"
    ]


def test_a_method_that_is_too_long_is_found() -> None:
    body = function_of(41).replace("async def", "    def").replace("    pass", "        pass")
    assert len(complaints(long_functions, {"a.py": "class A:\n" + body})) == 1


@pytest.mark.parametrize(("path", "limit"), [("service/a.py", 350), ("tests/test_a.py", 600)])
def test_a_module_that_is_one_line_too_long_is_found(path: str, limit: int) -> None:
    assert complaints(long_modules, {path: "pass\n" * limit}) == []
    assert len(complaints(long_modules, {path: "pass\n" * (limit + 1)})) == 1


def test_a_seventh_positional_parameter_is_found() -> None:
    assert complaints(long_signatures, {"a.py": "def f(a, b, c, d, e, f, *, g): ..."}) == []
    assert complaints(long_signatures, {"a.py": "def f(self, a, b, c, d, e, f): ..."}) == []
    assert len(complaints(long_signatures, {"a.py": "def f(a, b, /, c, d, e, f, g): ..."})) == 1


@pytest.mark.parametrize(
    "text",
    ["", "import os\n", '"""Says little"""\n', '"""Runs\nover."""\n', '"""One.\nTwo."""\n'],
)
def test_a_module_without_a_proper_first_line_is_found(text: str) -> None:
    good = {"a.py": '"""Draws pictures."""\n', "b.py": '"""Draws.\n\nAnd why.\n"""\n'}
    assert complaints(undescribed_modules, good) == []
    assert len(complaints(undescribed_modules, {"a.py": text})) == 1


@pytest.mark.parametrize("word", ["to" + "do", "fix" + "me", "x" * 3])
def test_work_left_for_later_is_found(word: str) -> None:
    assert complaints(leftovers, {"a.sql": "SELECT 1;\n"}) == []
    assert complaints(leftovers, {"a.sql": f"SELECT 1;\n-- {word.upper()}: rest\n"}) == [
        "a.sql: line 2 leaves work for later"
    ]


@pytest.mark.parametrize(
    "path",
    ["service/utils.py", "service/helpers/a.py", "service/task_manager.py", "service/queue.py"],
)
def test_a_vague_or_taken_module_name_is_found(path: str) -> None:
    assert complaints(vague_names, {"service/delivery/signing.py": ""}) == []
    assert len(complaints(vague_names, {path: ""})) == 1


@pytest.mark.parametrize("text", ["found = 1\n", "def f(given): ...\n", "def said(): ...\n"])
def test_a_participle_as_a_name_is_found(text: str) -> None:
    assert complaints(participles, {"a.py": "row = found(given='x').said\n"}) == []
    assert len(complaints(participles, {"a.py": text})) == 1


@pytest.mark.parametrize(
    "text",
    [
        "from starlette.middleware.base import BaseHTTPMiddleware\n",
        "class Slow(base.BaseHTTPMiddleware): ...\n",
        "class Slow(BaseHTTPMiddleware): ...\n",
    ],
)
def test_the_slow_middleware_is_found(text: str) -> None:
    assert complaints(slow_middleware, {"a.py": "name = 'BaseHTTPMiddleware'\n"}) == []
    assert len(complaints(slow_middleware, {"a.py": text})) == 1


@pytest.mark.parametrize("text", ["u.startswith('http:')\n", "u.startswith(('https://', 'a'))\n"])
def test_a_scheme_read_by_its_spelling_is_found(text: str) -> None:
    assert complaints(spelled_schemes, {"service/a.py": "u.startswith('httpx')\n"}) == []
    assert len(complaints(spelled_schemes, {"service/a.py": text})) == 1


def test_a_pattern_that_lets_a_line_end_through_is_found() -> None:
    assert complaints(loose_ends, {"service/a.py": "a = r'^x\\Z'\n"}) == []
    assert len(complaints(loose_ends, {"service/a.py": "a = '^x$'\n"})) == 1


def test_a_stray_print_is_found() -> None:
    text = "def f():\n    print('hello')\n"
    assert complaints(stray_prints, {PRINTER: text}) == []
    assert complaints(stray_prints, {"service/generations/poll.py": text}) == [
        f"service/generations/poll.py: line 2 prints; only {PRINTER} does"
    ]


def test_a_statement_that_nothing_uses_is_found() -> None:
    sql = {"a.sql": "-- name: get-one^\nSELECT 1;\n-- name: forgotten!\nDELETE FROM a;\n"}
    assert complaints(unused_statements(["queries.get_one(tx)"]), sql) == [
        "a.sql: no module uses forgotten"
    ]
    assert complaints(unused_statements(["queries.get_one", "run(tx, 'forgotten')"]), sql) == []


def test_a_setting_that_is_missing_or_invented_is_found() -> None:
    code = '"GENHOOK_A_SECONDS", "GENHOOK_B"'
    assert list(undocumented_settings(code, {"a.md": "`GENHOOK_B`, `GENHOOK_C`"})) == [
        "a.md misses GENHOOK_A_SECONDS",
        "a.md invents GENHOOK_C",
    ]
    assert list(undocumented_settings(code, {"a.md": code})) == []


@pytest.mark.parametrize(
    "text",
    ["[a](docs/nowhere.md)", "![a](nowhere.png#top)", "[a]: nowhere.md", "[a](../..)"],
)
def test_a_link_that_leads_nowhere_is_found(text: str) -> None:
    good = (
        "[a](pyproject.toml#x) [b](#x) [c](https://example.com/x) `[d](gone.md)`\n"
        "  ```\n  [e](gone.md)\n  ```\n[^f]: a footnote\n"
    )
    assert complaints(broken_links, {"README.md": good}) == []
    assert len(complaints(broken_links, {"README.md": good + text})) == 1


def test_what_serve_imports_counts_as_the_service() -> None:
    files = {
        "service/cli/main.py": "from service.cli.arguments import define\n",
        "service/cli/arguments.py": "\n",
        "service/cli/serve.py": "def serve():\n    from service.cli import server\n",
        "service/cli/server.py": "from service.sandbox import create_app\n",
        "service/cli/doctor.py": "\n\n\n",
        "service/sandbox/__init__.py": "\n",
        "service/app.py": "\n",
    }
    assert sizes(files) == {"service": 6, "toolbox": 4}


def test_a_readme_that_states_a_wrong_size_is_found() -> None:
    readme = "The service has 1,000 lines.\nThe toolbox (and more) has 100.\n"
    assert list(misstated_sizes(readme, {"service": 1_040, "toolbox": 96})) == []
    assert list(misstated_sizes(readme, {"service": 1_080, "toolbox": 96})) == [
        "README.md says that the service has 1000 lines; it has 1080"
    ]
    assert len(list(misstated_sizes("", {"service": 1_000}))) == 1
