"""Files as people have them: what each ending holds, and which columns are read."""

import gzip
import json
import sys
from dataclasses import replace

import pytest

from driftgate.config import PromptSettings
from driftgate.data.benchmarks import load_benchmark
from driftgate.data.held_out import write_held_out
from driftgate.data.problems import load_problems
from driftgate.data.rows import read_rows
from driftgate.errors import InputError

ROWS = [{"question": "3+4=", "label": "7"}, {"question": 'a "quoted", text\nof two lines', "label": "1"}]
CSV = 'question,label\n3+4=,7\n\n"a ""quoted"", text\nof two lines",1\n'


def write(path, content):
    """rows, text or bytes, as the ending of the path wants them."""
    if path.name.endswith(".parquet"):
        pyarrow = pytest.importorskip("pyarrow")
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist(content), path)
    else:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def loaded(path, **settings):
    """The problems, and the line about them."""
    said = []
    problems = load_problems(PromptSettings(path=path, **settings), say=said.append)
    return problems, said[0]


FILES = {
    "p.jsonl": lines(ROWS),
    "p.txt": lines(ROWS),
    "mark.jsonl": "\ufeff" + lines(ROWS),
    "p.jsonl.gz": gzip.compress(lines(ROWS).encode()),
    "list.json": json.dumps(ROWS, indent=2),
    "object.json": json.dumps({"version": 2, "data": ROWS, "tags": ["a"]}),
    "lines.json": lines(ROWS),
    "p.csv": CSV,
    "P.CSV": CSV.replace("\n", "\r\n"),
    "p.csv.gz": gzip.compress(CSV.encode()),
    "p.tsv": CSV.replace(",", "\t"),
    "p.parquet": ROWS,
}


@pytest.mark.parametrize("name", FILES)
def test_every_format_gives_the_same_problems(tmp_path, name):
    problems, said = loaded(write(tmp_path / name, FILES[name]))
    assert [p.id for p in problems] == ["0", "1"]
    assert [p.problem.replace("\r\n", "\n").replace("\t", ",") for p in problems] == [row["question"] for row in ROWS]
    assert [p.answer for p in problems] == ["7", "1"]
    assert said == f"prompts: 2 problems of {name}; problem from `question`, answer from `label`"


def test_a_file_of_one_object_is_one_problem(tmp_path):
    problems, _ = loaded(write(tmp_path / "one.json", json.dumps({"problem": "1+1=", "steps": [{"a": 1}]})))
    assert [p.problem for p in problems] == ["1+1="]


@pytest.mark.parametrize(
    ("row", "read", "said"),
    [
        ({"problem": "x", "prompt": "y", "answer": 7}, ("x", "7", None), "problem from `problem` (not `prompt`)"),
        ({"prompt": "x", "question": "y"}, ("x", None, None), "problem from `prompt` (not `question`), no answers"),
        ({"question": "x", "final_answer": "1"}, ("x", "1", None), "answer from `final_answer`"),
        (
            {"instruction": "x", "input": "", "output": "so"},
            ("x", None, "so"),
            "problem from `instruction`, solution from `output`",
        ),
        (
            {"query": "x", "reward_model": {"style": "rule", "ground_truth": "9"}},
            ("x", "9", None),
            "answer from `reward_model.ground_truth`",
        ),
        ({"question": "x", "answer": None, "target": "5"}, ("x", "5", None), "answer from `target`"),
        ({"question": "x", "answer": float("nan")}, ("x", None, None), "no answers"),
        (
            {"question": "x", "answer": "add\n#### 1,234"},
            ("x", "1,234", "add\n#### 1,234"),
            "answer from `answer`, of it what follows ####",
        ),
        (
            {"question": "x", "answer": "#### 4", "solution": "add"},
            ("x", "#### 4", "add"),
            "answer from `answer`, solution from `solution`",
        ),
    ],
)
def test_columns_are_found_by_themselves_and_said(tmp_path, row, read, said):
    problems, line = loaded(write(tmp_path / "p.jsonl", lines([row])))
    assert [(p.problem, p.answer, p.solution) for p in problems] == [read]
    assert said in line


ASK = [{"role": "system", "content": "Add."}, {"role": "user", "content": "1+1="}]
CHATS = {
    "verl": ({"data_source": "x", "prompt": ASK, "reward_model": {"style": "rule", "ground_truth": "2"}}, "2", None),
    "messages": ({"messages": [*ASK, {"role": "assistant", "content": "it is 2"}]}, None, "it is 2"),
    "trl": ({"prompt": ASK, "completion": [{"role": "assistant", "content": "it is 2"}]}, None, "it is 2"),
}


@pytest.mark.parametrize("name", ["p.jsonl", "p.parquet"])
@pytest.mark.parametrize("kind", CHATS)
def test_conversations_are_found_and_held_out_whole(tmp_path, kind, name):
    row, answer, solution = CHATS[kind]
    [problem], said = loaded(write(tmp_path / name, [row] if name == "p.parquet" else lines([row])))
    assert (problem.problem, problem.answer, problem.solution) == ("1+1=", answer, solution)
    assert problem.messages == (("system", "Add."), ("user", "1+1="))
    assert ("solution from the assistant's last turn" in said) == (kind == "messages")
    write_held_out(tmp_path, [replace(problem, answer="2")])
    assert load_benchmark(str(tmp_path / "held_out.jsonl")) == [replace(problem, answer="2")]


def test_what_the_settings_name_comes_first(tmp_path):
    row = {"problem": "x", "text": "y", "answer": "add\n#### 4", "reward_model": {"ground_truth": "4"}}
    path = write(tmp_path / "p.jsonl", lines([row]))
    assert [p.problem for p in loaded(path, columns={"problem": "text"})[0]] == ["y"]
    assert loaded(path, columns={"answer": "reward_model.ground_truth"})[0][0].answer == "4"
    assert loaded(path, columns={"answer": "answer"})[0][0].answer == row["answer"]
    both = loaded(path, columns={"solution": "answer"})[0][0]
    assert (both.answer, both.solution) == ("4", row["answer"])


def test_only_the_first_problems_are_read(tmp_path):
    path = write(tmp_path / "p.csv", CSV)
    assert len(loaded(path, limit=1)[0]) == 1
    assert len(loaded("sandbox", limit=5)[0]) == 5


BAD = {
    "no.csv": (None, r"prompts.path = .*no.csv: there is no such file; give one that ends with .jsonl, .json, .parq"),
    "e.csv": ("question\n", r"prompts.path = .*e.csv: the file has no lines that are not blank"),
    "e.parquet": ([], r"prompts.path = .*e.parquet: the file has no rows"),
    "x.parquet": (b"PAR1", r"prompts.path = .*x.parquet: cannot be read as parquet"),
    "x.jsonl.gz": (b"no", r"prompts.path = .*x.jsonl.gz: cannot be unpacked"),
    "x.csv": (b"question\n\xff\n", r"prompts.path = .*x.csv: not UTF-8 text"),
    "long.csv": ("question,label\n1+1=,2\n3,4,5\n", r"long.csv:3: 3 cells, but 2 columns in the first row; put quotes"),
    "short.tsv": ("question\tlabel\n\n1+1=\n", r"short.tsv:3: 1 cells, but 2 columns"),
    "open.csv": ('question\n"1+1=\n', r"open.csv:2: not valid CSV \(unexpected end of data\); quote the cell"),
    "twice.csv": ("question,question\n1,2\n", r"twice.csv:1: the first row must name every column once"),
    "x.json": ('[{"problem": "1+1="},\n]', r"x.json:2: not valid JSON"),
    "line.json": ('{"problem": "1+1="}\n{"problem"\n', r"line.json:2: not valid JSON"),
    "two.json": ('{"a": [{"problem": "x"}], "b": [{"problem": "y"}]}', r"two.json: one object with the lists a, b; wh"),
    "row.json": ('[{"problem": "1+1="}, 7]', r"row.json row 1: must be an object such as .*, is int"),
    "blank.csv": ("question,label\n1+1=,2\n,3\n", r"blank.csv:3: 'question' must be a text that is not empty$"),
    "none.csv": (
        "text,label\n1+1=,2\n",
        r"none.csv:2: 'problem' must be .* the columns are \['label', 'text'\]; re",
    ),
    "both.csv": ("instruction,input\nadd,1 1\n", r"prompts.columns: rows have text in `instruction` and in `input`"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_file_that_cannot_be_read_is_named_with_its_row(tmp_path, name):
    content, said = BAD[name]
    if content == []:
        pyarrow = pytest.importorskip("pyarrow")
        from pyarrow import parquet

        parquet.write_table(pyarrow.table({"problem": pyarrow.array([], pyarrow.string())}), tmp_path / name)
    elif content is not None:
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=said):
        load_problems(PromptSettings(path=str(tmp_path / name)))


def test_parquet_without_the_library_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "p.parquet").write_bytes(b"PAR1")
    with pytest.raises(InputError, match=r"prompts.path = .*p.parquet: needs the extra `parquet`: .*driftgate\[parqu"):
        read_rows(str(tmp_path / "p.parquet"), "prompts.path")


@pytest.mark.parametrize("name", ["p.csv", "list.json", "p.parquet", "p.jsonl.gz"])
def test_a_benchmark_is_read_as_prompts_are(tmp_path, name):
    said = []
    problems = load_benchmark(write(tmp_path / name, FILES[name]), say=said.append)
    assert [p.answer for p in problems] == ["7", "1"]
    assert said[0].endswith("2 problems; problem from `question`, answer from `label`")


def test_a_benchmark_without_a_known_column_does_not_name_a_setting(tmp_path):
    path = write(tmp_path / "p.jsonl", lines([{"text": "x"}]))
    with pytest.raises(InputError, match=r"the columns are \['text'\]; rename one of them to `problem`$"):
        load_benchmark(path)


def test_a_benchmark_from_the_hub_is_named_as_prompts_are(monkeypatch):
    from types import SimpleNamespace

    stand_in = SimpleNamespace(load_dataset=lambda *words, **more: ROWS)
    monkeypatch.setitem(sys.modules, "datasets", stand_in)
    assert [p.answer for p in load_benchmark("hub:someone/sums@test")] == ["7", "1"]
