"""How the page reads files: delimiters, columns by name, steps in order, labels."""

import json

import pytest

pytestmark = pytest.mark.browser

READ = (
    "([text, model]) => import('/playground/input/table.js').then(({ read, fit }) => {"
    " try { return fit(read(text), { name: 'net', ...model }); }"
    " catch (error) { return { error: [error.message, error.problem.title].join(' ') }; } })"
)


def read(page, text, features, columns=None, **model):
    """The sequences of a text, or the error, for a model with these features."""
    model = {"features": features, "training": {"columns": columns}, **model}
    return page.evaluate(READ, [text, model])


def read_texts(page, content, data):
    """The texts of an input, or the error, for a model whose training had these settings."""
    model = {"input": "characters", "training": {"settings": {"data": data}}}
    result = read(page, content, ["character"], **model)
    return result.get("error") or ["".join(s["frames"]) for s in result["sequences"]]


def test_frames(page):
    """Each format gives frames in the order of the model's features."""
    for text, features, frames in (
        ("[1, 2, 3]", ["a", "b", "c"], [[1, 2, 3]]),
        ("[1, 2, 3]", ["a"], [[1], [2], [3]]),
        ('{"frames": [{"b": 1, "a": 2}], "id": 7}', ["a", "b"], [[2, 1]]),
        ('[{"b": 1, "a": 2}, {"a": 4, "b": 3}]', ["a", "b"], [[2, 1], [4, 3]]),
        ('{"b": 1, "a": 2}\n{"a": 4, "b": 3}', ["a", "b"], [[2, 1], [4, 3]]),
        ("0,1\n5,6", ["0", "1"], [[5, 6]]),
        ("1,0\n5,6", ["0", "1"], [[6, 5]]),
        ('"a, b",c\n5,6', ["c", "a, b"], [[6, 5]]),
        ('"a ""b""\nc",d\n5,6', ["d", 'a "b"\nc'], [[6, 5]]),
        ("\ufeff1;2\r\n3;4\r\n", ["a", "b"], [[1, 2], [3, 4]]),
        ("b;a\n1,5;2", ["a", "b"], [[2, 1.5]]),
        ("1,5;2,5\n3;4", ["a", "b"], [[1.5, 2.5], [3, 4]]),
        ("sep=;\r\nb;a\r\n1,5;2\r\n", ["a", "b"], [[2, 1.5]]),
        ("b,a\n1,2\n,\n  \n3,4\n,\n", ["a", "b"], [[2, 1], [4, 3]]),
        ("b,a,,\n1,2\n3,4,\n", ["a", "b"], [[2, 1], [4, 3]]),
        ("b\ta\n1e-3\t-,5", ["a", "b"], [[-0.5, 0.001]]),
        ("b|a|c\n1|2|3", ["a", "b"], [[2, 1]]),
        ("step,a\n1,7\n2,8", ["x0"], [[7], [8]]),
        ("a,split,b\n1,test,2", ["b", "a"], [[2, 1]]),
        ("step,a\n1,7", ["step", "a"], [[1, 7]]),
    ):
        result = read(page, text, features)
        assert [s["frames"] for s in result.get("sequences", [])] == [frames], result


def test_unused_columns(page):
    """Columns that the model does not use are named, columns without a name too."""
    result = read(page, ",note,b,a,unit\n0,x,1,2,y", ["a", "b"])
    assert result["unused"] == ["column 1", "note", "unit"]
    assert result["sequences"][0]["frames"] == [[2, 1]]


def test_order_by_step(page):
    """A column of numbers or times orders the rows of each sequence."""
    for steps in (
        ("10", "9", "9.5"),
        ("1700000000000000003", "1700000000000000001", "1700000000000000002"),
        ("2026-01-02", "2026-01-01", "2026-01-01T12:00"),
        (
            "2026-01-01T01:00:00.000003",
            "2026-01-01T01:00:00Z",
            "2026-01-01 01:00:00.000001",
        ),
        ("2026-01-01T03:00:00+01:00", "2026-01-01T01:30:00Z", "2026-01-01T02:40:00+01"),
    ):
        rows = zip("abcabc", steps * 2, range(6), strict=True)
        lines = [f"{'pq'[n // 3]},{step},{n}" for _, step, n in rows]
        mixed = [lines[at] for at in (0, 3, 1, 4, 2, 5)]
        result = read(page, "\n".join(["sequence,step,x", *mixed]), ["x"])
        p, q = result["sequences"]
        assert p["frames"] == [[1], [2], [0]], steps
        assert q["frames"] == [[4], [5], [3]], steps
        assert p["steps"] == [steps[1], steps[2], steps[0]]


def test_trained_columns(page):
    """The model's own names for the columns count, where the file has them."""
    text = "run,t,state,x\na,2,up,5\na,1,down,6\nb,1,up,7"
    names = {"sequence": "run", "label": "state", "step": "t"}
    a, b = read(page, text, ["x"], names)["sequences"]
    assert (a["name"], a["frames"], a["labels"]) == ("a", [[6], [5]], ["down", "up"])
    assert (b["name"], b["frames"], b["labels"]) == ("b", [[7]], ["up"])
    usual = "sequence,step,label,x\na,2,up,5\na,1,down,6"
    (a,) = read(page, usual, ["x"], names | {"label": None})["sequences"]
    assert (a["frames"], a["labels"]) == ([[6], [5]], ["down", "up"])


def test_labels(page):
    """JSON has labels of sequences or of steps, and ids."""
    lines = (
        {"id": "p", "frames": [[1], [2]], "labels": ["up", "down"]},
        {"frames": [[3]], "label": 7},
    )
    p, second = read(page, "\n".join(map(json.dumps, lines)), ["x0"])["sequences"]
    assert (p["name"], p["labels"]) == ("p", ["up", "down"])
    assert (second["name"], second["label"]) == ("sequence 2", "7")


def test_refusals(page):
    """A file that can't be read says where and why, and names near columns."""
    for text, features, message in (
        (
            "Vibration,sped\n1,2",
            ["vibration", "speed"],
            "“vibration” (is it “Vibration”?)",
        ),
        ("Vibration,sped\n1,2", ["vibration", "speed"], "“speed” (is it “sped”?)"),
        ("Sequence,a\np,1", ["a"], "Is it “Sequence”? Rename it, or remove it."),
        ("a\n1", ["b"], "1 feature of net is missing"),
        ("a,b\n1,2", ["x0"], "2 columns of numbers; net takes 1"),
        ("1,2\n3,4", ["a", "b", "c"], "2 features per step; net takes 3"),
        ("a,a\n1,2", ["a"], "“a” is repeated"),
        ("a\n1\n\nNA", ["a"], "Line 4: a number is missing (column “a”)"),
        ("a,b\n1,5,2", ["a", "b"], "Line 2 has 3 cells"),
        ("a\n1,5", ["a"], "Line 2 has 2 cells"),
        ('a\n"1', ["a"], "Line 2: a quote is not closed"),
        ("sequence,a\np,1\nq,2\np,3", ["a"], "Line 4: the sequence “p” appears again"),
        (
            "step,a\n1,1\n1,2",
            ["a"],
            "Line 3: the sequence “sequence 1” has the same step",
        ),
        ("step,a\nsoon,1", ["a"], "Line 2: “soon” is neither a number nor"),
        ("step,a\n2026-13-40,1", ["a"], "Line 2: “2026-13-40” is neither a number nor"),
        ('{"frames": [{"a": 1}, {"b": 2}]}', ["a"], "step 1: “a” is not a number"),
        ('{"frames": [[1]], "labels": ["u", "d"]}', ["a"], "2 labels, but 1 steps"),
        ("[[1, 2], [3]]", ["a", "b"], "step 1: has 1 features, step 0 has 2"),
        ("x1,x0,y\n1,2,3", ["x0", "x1", "x2"], "1 feature of net is missing"),
        ("run,a\np,1", ["a"], "There is no column “sequence”."),
        ("a;b\n1,5;2\n3;4.5", ["a", "b"], "Line 2 has a decimal comma, and line 3"),
    ):
        result = read(page, text, features)
        assert message in result.get("error", ""), (text, result)


def test_fits(page):
    """A model is offered for an input with its features, even if it has another fault."""
    script = (
        "([text, features]) => import('/playground/input/table.js').then(({ read, fits }) =>"
        " fits(read(text), { name: 'net', features }))"
    )
    for text, fits in (("run,a\np,1", True), ("run,b\np,1", False), ("a\n1", True)):
        assert page.evaluate(script, [text, ["a"]]) == fits


def test_texts(page):
    """Texts are a column with its name in training, `text`, or the only one with words, else a
    text a line."""
    both = ["turn it on", "off"]
    for text, data in (
        ("text\nturn it on\noff", {}),
        ("id;text;note\n1;turn it on;so it is\n2;off;a b", {}),
        ("text,body\nx y,turn it on\nx y,off", {"text": "body"}),
        ("kind,body\nup,turn it on\ndown,off", {"text": "body"}),
        ("turn it on\noff", {}),
        ('[{"text": "turn it on"}, {"text": "off"}]', {}),
        ('{"texts": ["turn it on", "off"], "model": "net"}', {}),
    ):
        assert read_texts(page, text, data) == both, text
    lines = ['say "on", now, or then', "no, not now"]
    assert read_texts(page, "\n".join(lines), {}) == lines


def test_labels_of_texts(page):
    """Labels, ids, and unused columns of a table of texts."""
    data = {"text": "body", "label_column": "kind"}
    model = {"input": "tokens", "training": {"settings": {"data": data}}}
    table = "id,body,kind,note\n7,turn it on,up,x\n8,off,,x"
    result = read(page, table, ["word"], **model)
    first, second = result["sequences"]
    assert (first["name"], first["id"], first["label"]) == ("7", "7", "up")
    assert second.get("label") is None
    assert result["unused"] == ["note"]


def test_records(page):
    """Rows are records, in the order of their times; a missing category is null."""
    kinds = {"event": "category", "bytes": "number", "at": "time"}
    model = {"input": "records", "kinds": kinds}
    table = (
        "sequence,at,event,bytes,label\np,3,b,1.5,up\nq,1,a,2,up\np,2,,0,up\np,2,c,7,up"
    )
    p, q = read(page, table, list(kinds), **model)["sequences"]
    assert p["frames"] == [
        {"event": None, "bytes": 0, "at": 2},
        {"event": "c", "bytes": 7, "at": 2},
        {"event": "b", "bytes": 1.5, "at": 3},
    ]
    assert (q["name"], q["labels"]) == ("q", ["up"])
    record = {"event": "a", "bytes": 1, "at": "2026-01-01T00:00:00Z"}
    for body in ({"records": [record]}, {"records": [[record]]}):
        result = read(page, json.dumps(body), list(kinds), **model)
        assert result["sequences"][0]["frames"] == [record]


def test_other_inputs(page):
    """An input of another kind is refused, with what the model reads."""
    texts = {"input": "characters", "training": {}}
    records = {"input": "records", "kinds": {"event": "category"}}
    for text, model, message in (
        ("a,b\n1,2", texts, "no column of texts; net reads text."),
        ("a\n1\n2", texts, "no column of texts"),
        ("[[1, 2]]", texts, "is not a text"),
        ("a,b\nx y,z q\nv w,r s", texts, "Several columns hold texts: a, b."),
        ("text,n\n,1\nx,2", texts, "Line 2: the text is empty"),
        ("[[1]]", records, "holds lists of numbers; net reads records with event"),
        ("host\nx", records, "1 feature of net is missing"),
        ('{"texts": ["a b"]}', {}, "holds texts; net reads 1 feature"),
        ('{"records": [{"event": "x"}]}', {}, "holds records; net reads 1 feature"),
    ):
        result = read(page, text, ["event"], **model)
        assert message in result.get("error", ""), (text, result)
