"""Templates of other tools: what each notation gives, what is refused, and that nothing is ever run."""

import textwrap

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fewtune.errors import FewtuneError, TaskError
from fewtune.prompt.importers import NOTATIONS, read
from fewtune.prompt.importers.imported import Imported
from fewtune.prompt.template import Template, literal
from fewtune.tasks.task import Task

NEWS = textwrap.dedent("""\
    dataset: news
    subset: short
    templates:
      11-aa: !Template
        answer_choices: World ||| Sports
        answer_choices_key: null
        jinja: 'Is this about {{"world politics"}} or {{"sports"}}?{# a remark #}

          {{ text }}

          |||

          {{answer_choices[label]}}'
        metadata: !TemplateMetadata
          original_task: true
        name: question
      22-bb: !Template
        answer_choices: [World, Sports]
        jinja: "{{ headline | trim }} -- {{- text -}}  One of {{ answer_choices | join(', ') }}, not {{answer_choices[0]}} {x} |||\\
          \\ Section: {{ answer_choices[label] }}"
        name: listed
      33-cc: !Template
        answer_choices: [World, Sports]
        jinja: "{% if text %}{{text}}{% endif %} ||| {{ answer_choices[label] }}"
        name: branching
      44-dd: !Template
        answer_choices: ['yes', 'no']
        jinja: "{{text}} Is it sport? ||| {{ answer_choices[label] }}"
        name: sport
    """)


def jinja(text, choices="no ||| yes"):
    return f"templates:\n  a: !Template\n    answer_choices: '{choices}'\n    name: one\n    jinja: {text!r}\n"


def test_the_listed_notations():
    assert list(NOTATIONS) == ["promptsource", "openprompt", "lm-bff", "pet"]


def test_promptsource():
    found = read(NEWS)
    assert found.name == "news/short"
    assert found.templates == (
        "Is this about world politics or sports?\n{text} {slot}",
        "{headline} --{text}One of World, Sports, not World {{x}} Section: {slot}",
    )
    assert found.words == {"0": ("World",), "1": ("Sports",)} and found.labels == ("0", "1")
    said = "\n".join(found.notes)
    assert 'template:24: "branching" is left out: expected what a template can hold, got {% if %}.' in said
    assert '"sport" is left out: its answer choices are others (yes, no).' in said


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("{% for x in y %}{{x}}{% endfor %} ||| {{answer_choices[label]}}", "{% for %}"),
        ("{{ text.upper() }} ||| {{answer_choices[label]}}", "{{ text.upper() }}"),
        ("{{ ''.__class__.__mro__ }} ||| {{answer_choices[label]}}", "__mro__"),
        ("{{ __import__('os').system('true') }} ||| {{answer_choices[label]}}", "__import__"),
        ("{{ text | lower }} ||| {{answer_choices[label]}}", "lower"),
        ("{{ text }} {{ answer_choices[label] }} ||| {{answer_choices[label]}}", "answer_choices[label]"),
        ("{{ text }} {{ answer_choices[2] }} ||| {{answer_choices[label]}}", "answer_choices[2]"),
        ("{{ text }} ||| {{ summary }}", "none"),
        ("{{ text }} {{ slot }} ||| {{answer_choices[label]}}", "'slot'"),
        ("{{ text ||| {{answer_choices[label]}}", "{{ text"),
        ("{{ text }}", "0 of them"),
        ("no field ||| {{answer_choices[label]}}", "none"),
    ],
)
def test_jinja_that_is_refused_by_name(text, named):
    with pytest.raises(TaskError) as caught:
        read(jinja(text))
    assert named in str(caught.value) and caught.value.where == "template:5"


@pytest.mark.parametrize("choices", ["", "one", "yes ||| yes", "{{a}} ||| {{b}}"])
def test_choices_that_are_refused(choices):
    with pytest.raises(TaskError, match="answer choices that differ"):
        read(jinja("{{ text }} ||| {{answer_choices[label]}}", choices))


@pytest.mark.slow
@pytest.mark.parametrize("tag", ["!!python/object/apply:os.system ['true']", "!!python/name:os.system", "[" * 3000, '"\\U7fffffff"'])
def test_hostile_yaml_makes_nothing(tag):
    with pytest.raises(TaskError):
        read(f"templates:\n  a: {tag}\n")


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ('{"placeholder":"text_a"} It was {"mask"}.', "{text_a} It was {slot}."),
        ('{"placeholder": "text_a", "shortenable": True}   In summary ,  {"mask"} ', "{text_a} In summary , {slot}"),
        ("A {'mask'} question: {'meta':'body'} }", "A {slot} question: {body} }}"),
        ('{"special": "<cls>"}{"meta":"a"}{"special":"<sep>"}{"text":"{x} "}{"mask"}{"special":"<eos>"}', "{a}{sep}{{x}} {slot}"),
        ('{"soft": "It seems"} {"meta":"a"} {"mask"}', "It seems {a} {slot}"),
    ],
)
def test_openprompt(line, wanted):
    assert read(line).templates == (wanted,)


def test_openprompt_says_what_changes():
    found = read('{"meta":"a"} {"mask"}\n\n{"soft":"so"} {"placeholder":"b", "shortenable":False} {"mask"}\n')
    assert found.templates == ("{a} {slot}", "so {b} {slot}")
    assert len(found.notes) == 2 and all(note.startswith("template:3: ") for note in found.notes)


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ('{"placeholder":"text_a", "post_processing": lambda x: x.strip()} {"mask"}', "post_processing"),
        ('{"meta": __import__("os").getcwd()} {"mask"}', "__import__"),
        ('{"meta": "a"} {"mask", open("x", "w")}', "open"),
        ('{"soft"} {"meta": "a"} {"mask"}', "soft"),
        ('{"soft": None, "duplicate": 9} {"meta": "a"} {"mask"}', "duplicate"),
        ('{"meta": "a", "mask": 1}', "mask"),
        ('{"meta": "a"} {"special": "<x>"} {"mask"}', "<x>"),
        ('{"meta": "slot"} {"mask"}', "slot"),
        ('{"meta": "a"} {"mask"} {"mask"}', "several"),
        ('{"meta": "a"} {"mask"', "{"),
        ('{"meta": "a"}', "none"),
        ('{"mask"}', "none"),
    ],
)
def test_openprompt_that_is_refused(line, named):
    with pytest.raises(TaskError) as caught:
        read(f"\n{line}", "openprompt")
    assert named in caught.value.got and caught.value.where == "template:2"


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("*cls**sent_0*_It_was*mask*.*sep+*", "{sent_0} It was {slot}."),
        ("*cls**sent-_0*?*mask*,*+sentl_1**sep+*", "{sent_0}? {slot}, {sent_1}"),
        ("*cls**mask*:*+sent_0**sep+*", " {slot}: {sent_0}"),
        ("*cls**sent_0**sep+**+sentu_1*_{a}*mask*", "{sent_0}{sep} {sent_1} {{a}} {slot}"),
    ],
)
def test_star_notation(line, wanted):
    assert read(line).templates == (wanted,)


def test_star_notation_with_words():
    found = read(
        "*cls**sent_0*_It_was*mask*.*sep+*\t{'0':'terrible','1':'great'}\n*cls**sentl_0*?*mask*.*sep+*\n" + '{"0": "bad", "1": "good"}\n'
    )
    assert found.templates == ("{sent_0} It was {slot}.", "{sent_0}? {slot}.")
    assert found.words == {"0": ("terrible",), "1": ("great",)} and found.labels == ("0", "1")
    assert found.notes == (
        "template:2: The first letter of a text is not made small.",
        "template:3: Other label words than the first are left out.",
    )


@pytest.mark.parametrize(
    "line",
    [
        "*cls**sent_0*_*mask**sep+**sent_1**label_0*",
        "*sent_0**cls**mask*",
        "*sentx_0*_*mask*",
        "*mask*",
        "*sent_0*",
        "***",
        "{'0': __import__('os').getcwd()}",
        "{'0': 3}",
        "{'0': ''}",
        "{1.5: 'a'}",
        "{'0': 'a', 0: 'b'}",
        "{}",
        "{'0': (lambda: 'x')()}",
    ],
)
def test_star_notation_that_is_refused(line):
    with pytest.raises(TaskError, match="^template:1: "):
        read(line, "lm-bff")


def test_pet():
    found = read("0\nneg terrible bad\npos great\n\n1\nneg no\npos yes\n")
    assert found.words == {"neg": ("terrible", "bad"), "pos": ("great",)} and found.labels == ("neg", "pos")
    assert found.templates == () and len(found.notes) == 2 and "Python code" in found.notes[0]


@pytest.mark.parametrize(("text", "where"), [("neg bad", ":1"), ("0\nneg", ":2"), ("0\nneg a\nneg b", ":3"), ("0\n1\n", "")])
def test_pet_that_is_refused(text, where):
    with pytest.raises(TaskError) as caught:
        read(text, "pet")
    assert caught.value.where == f"template{where}"


def test_files(tmp_path):
    path = tmp_path / "sst.txt"
    path.write_text("\ufeff*cls**sent_0*_It_was*mask*.*sep+*\r\n", encoding="utf-8")
    found = read(path)
    assert (found.name, found.templates) == ("sst", ("{sent_0} It was {slot}.",))
    path.write_bytes(b"\xff")
    for wrong in (path, tmp_path, tmp_path / "none"):
        with pytest.raises(TaskError, match="a text file in UTF-8"):
            read(wrong)


def test_a_notation_that_is_unknown():
    with pytest.raises(TaskError, match="Known: promptsource, openprompt, lm-bff, pet"):
        read("Review: {text} {slot}")
    with pytest.raises(TaskError, match='Did you mean "lm-bff"'):
        read("*mask*", "lmbff")


def test_half_a_surrogate_pair_is_refused():
    with pytest.raises(TaskError, match="surrogate"):
        read('{"0": "\\ud800", "1": "a"}')


def test_a_task_of_it():
    found = read("*cls**sent_0*_It_was*mask*.*sep+*\t{'0':'terrible','1':'great'}")
    task = found.task(["negative", "positive"])
    assert task == Task(
        ("negative", "positive"), ("sent_0",), found.templates, {"negative": ("terrible",), "positive": ("great",)}, name="task"
    )
    assert found.task().labels == ("0", "1")
    with pytest.raises(TaskError, match="expected 2 labels, got 1"):
        found.task(["positive"])
    with pytest.raises(TaskError, match="--labels"):
        Imported("x", ("{a} {slot}",)).task()
    assert Imported("x", ("{a} {slot}",)).task(["b", "c"]).labels == ("b", "c")


plain = st.text(st.characters(exclude_categories=("Cs", "Cc", "Zl", "Zp")), max_size=12)


@given(plain.filter(lambda text: not set(text) & set("*_\t")))
def test_braces_in_star_notation_stand_for_themselves(text):
    if text.startswith(("sent", "+sent", "label", "mask", "cls", "sep")):
        return
    (template,) = read(f"*cls**sent_0*.{text}.*mask*", "lm-bff").templates
    assert Template.parse(template) == Template.parse("{sent_0}." + literal(text) + ". {slot}")


@given(plain.filter(lambda text: "{" not in text))
def test_braces_in_openprompt_stand_for_themselves(text):
    (template,) = read('{"meta":"a"}.' + text + '.{"mask"}', "openprompt").templates
    assert Template.parse(template) == Template.parse("{a}." + literal(text) + ".{slot}")


pieces = st.sampled_from(
    [
        "*cls*",
        "*mask*",
        "*sent_0*",
        "*label_0*",
        "{",
        "}",
        "{{",
        "}}",
        "{%",
        "%}",
        "{#",
        '"',
        "'",
        "\\",
        "|||",
        "\n",
        "0\n",
        "a b",
        ":",
        "- ",
    ]
    + [
        "text",
        "answer_choices",
        "[label]",
        "[0]",
        "|join",
        "(",
        ")",
        "lambda",
        "!Template",
        "jinja:",
        "templates:\n  a:\n    ",
        "&a ",
        "*a",
        "~",
    ]
    + ['{"meta":"a"}', '{"mask"}', '{"soft"}', "__import__('os')", "\ud800", "\x00", "\u2028", "²", '"\\U7fffffff"', "%YAML 1.", "!!int "]
)
hostile = st.one_of(st.text(max_size=40), st.lists(pieces, max_size=12).map("".join))


@pytest.mark.slow
@settings(max_examples=300)
@given(hostile, st.sampled_from([None, *NOTATIONS]))
@example("[" * 2000, "promptsource")
@example("{'a':" + "-" * 20000 + "1}", "lm-bff")
def test_nothing_but_our_own_errors(text, notation):
    try:
        found = read(text, notation)
    except FewtuneError:
        return
    for template in found.templates:
        assert str(Template.parse(template)) == template and "{slot}" in template


@pytest.mark.slow
@settings(max_examples=200)
@given(st.lists(pieces, max_size=8).map("".join))
def test_nothing_but_our_own_errors_inside_a_template(text):
    try:
        found = read(jinja(text + " ||| {{ answer_choices[label] }}"))
    except FewtuneError:
        return
    assert found.task() and all("{slot}" in template for template in found.templates)
