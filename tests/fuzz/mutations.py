"""Studies as people may write them by mistake, or to do harm: the shipped ones, mutated."""

from __future__ import annotations

import copy
import datetime
from collections.abc import Callable
from typing import Any

import yaml
from hypothesis import strategies as st

from gpm_tune.study.definition.specification import shipped_studies

TEXTS = {path.name: path.read_text(encoding="utf-8") for path in sorted(shipped_studies().glob("*.yaml"))}
TREES: dict[str, dict[str, Any]] = {name: yaml.safe_load(text) for name, text in TEXTS.items()}

Path = tuple[str | int, ...]


def _paths(node: Any, path: Path = ()) -> list[Path]:
    """Of everything below a node."""
    inner = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    found: list[Path] = []
    for key, value in inner:
        found += [(*path, key), *_paths(value, (*path, key))]
    return found


def _at(tree: Any, path: Path) -> Any:
    for key in path:
        tree = tree[key]
    return tree


def _sorted(values: set[Any]) -> list[Any]:
    return sorted(values, key=str)


ALL_PATHS = {name: _paths(tree) for name, tree in TREES.items()}
KEYS = _sorted(
    {key for paths in ALL_PATHS.values() for path in paths for key in path if isinstance(key, str)}
)
DOTTED = sorted(
    {".".join(map(str, path[1:])) for paths in ALL_PATHS.values() for path in paths if len(path) > 1}
)
SUBTREES = [(name, path) for name, paths in ALL_PATHS.items() for path in paths]
SAMPLERS = [
    *("tpe", "gp", "cmaes", "nsga2", "nsga3", "random", "quasi_random", "grid", "brute_force"),
]
SCHEDULERS = ["asha", "hyperband", "median", "pbt", "none"]
NAMES = [
    *("gaussians", "digits", "mnist", "celeba"),
    *("edm", "score_gan", "discr_flow", "gan", "kernel_flow"),
    *(
        "mlp",
        "dcgan",
        "resnet",
        "fastgan",
        "unet",
        "normal",
        "orthogonal",
        "default",
        "fourier",
        "positional",
    ),
    *("euler", "heun", "langevin", "mmd", "entropy", "f_divergence", "stein", "gaussian", "energy"),
    *SAMPLERS,
    *SCHEDULERS,
]
METRICS = ["fid", "frechet", "sliced_wasserstein", "modes_covered", "nfe", "parameters", "system/gpu_memory"]
NUMBERS = [
    *(0, 1, -1, 2, 3, 7, 1.5, -0.0, 0.1, 1e-9, 1e9, 2**31, 2**32, 2**53 + 1, 2**63, 10**30, -(10**30)),
    *(5e-324, 1e-200, 1e200, 1.7e308, float("inf"), float("-inf"), float("nan")),
]
WORDS = [
    *(
        "",
        " ",
        "base",
        "paper",
        "null",
        "~",
        "yes",
        "off",
        "0",
        "1e3",
        "nan",
        ".inf",
        "0x1F",
        "1:30",
        "2001-01-01",
    ),
    *(
        "..",
        "/",
        "/etc/passwd",
        "/dev/zero",
        "no_such.yaml",
        "edm.yaml",
        "score_gan.yaml",
        "study.yaml",
        "\0",
    ),
    *(
        "a" * 300 + ".yaml",
        "two\nlines",
        "tab\t",
        "\x1b[31m",
        "ünïcödé",
        "🙂",
        "x" * 5000,
        "a.b.c",
        "a..b",
        ".",
        "=",
    ),
    *(
        "0123456789abcdef" * 2,
        "fid/nfe_8",
        "fid/nfe_08",
        "fid/nfe_up_to_1",
        "fid/hypervolume",
        "<<",
        "{}",
        "[",
        "%",
    ),
    *("$HOME", "s3://bucket/x", "model.eta", "model", "experiment", "H100", "_", "bounds", "kind"),
]
# YAML that no plain data make, put in the place of a value.
RAW = [
    *(
        "!!python/object:os.system {}",
        "!!python/name:os.system",
        "!!binary aGVsbG8=",
        "!!set {a, b}",
        "!custom x",
    ),
    *(
        "!!omap [a: 1]",
        "!!pairs [a: 1]",
        "!!timestamp 2001-01-01",
        "!!timestamp x",
        "!!int x",
        "!!int ''",
        "!!str 3",
    ),
    *(
        "!!float ''",
        "!!bool maybe",
        "!!null x",
        "!!int {=: 3}",
        "!!seq {}",
        "!!map []",
        "2001-12-14t21:59:43.10-05:00",
    ),
    *(
        "&r [*r]",
        "&r {a: *r}",
        "&r {<<: *r}",
        "*undefined",
        "{<<: {a: 1}}",
        "{<<: 3}",
        "{? [a] : 1}",
        "{? {} : 1}",
    ),
    *(
        "{1: 2}",
        "{null: 1}",
        "{yes: 1, 1: 2}",
        "{2001-01-01: 1}",
        "0b_",
        "0x_",
        "1e999",
        "1_e5",
        "0x" + "f" * 5000,
    ),
    *(
        "[&a [1, 1], *a]",
        "9" * 5000,
        "<<",
        "=",
        "|\n  block",
        "- a",
        "'open",
        "{open",
        "@at",
        "`tick`",
        "%x",
        '"\\0"',
        '"\\ud800"',
    ),
    "[" * 60 + "]" * 60,
    "[" * 2000,
    "[&a0 [x, x], " + ", ".join(f"&a{i + 1} [*a{i}, *a{i}, *a{i}, *a{i}]" for i in range(30)) + "]",
    "[&m0 {k: v}, " + ", ".join(f"&m{i + 1} {{<<: [*m{i}, *m{i}, *m{i}]}}" for i in range(30)) + "]",
]


def _raw(index: int) -> str:
    return f"RAW{index}WAR"


TEXT = st.text(st.characters(exclude_categories=("Cc", "Cs")), max_size=6)
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from(NUMBERS),
    st.sampled_from(WORDS),
    st.sampled_from(NAMES),
    st.sampled_from(METRICS),
    st.sampled_from(DOTTED),
    st.integers(),
    st.floats(),
    TEXT,
    st.just(datetime.date(2001, 1, 1)),
    st.just(b"\xff\x00"),
    st.integers(0, len(RAW) - 1).map(_raw),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.sampled_from([*KEYS, *DOTTED, *WORDS, "name"]), inner, max_size=3),
    ),
    max_leaves=5,
)
ENDS = st.one_of(st.sampled_from(NUMBERS), st.sampled_from([1e-3, 0.5, 4, 16, 64, 100, 1000]))


@st.composite
def distributions(draw: st.DrawFn) -> dict[str, Any]:
    """Where values come from, plausibly and not."""
    kind = draw(st.sampled_from(["float", "int", "choice"]))
    value: Any = draw(st.lists(VALUES, max_size=4)) if kind == "choice" else [draw(ENDS), draw(ENDS)]
    found = {kind: value}
    if draw(st.booleans()):
        found["log"] = draw(st.booleans())
    if draw(st.booleans()):
        found["step"] = draw(ENDS)
    if draw(st.booleans()):
        conditions = st.one_of(SCALARS, st.lists(SCALARS, max_size=2), st.sampled_from(["ipm", "heun", True]))
        found["when"] = draw(st.dictionaries(st.sampled_from(DOTTED), conditions, max_size=2))
    return found


def _parent(tree: dict[str, Any], path: Path) -> Any:
    return _at(tree, path[:-1])


def _drop(draw: st.DrawFn, tree: dict[str, Any], path: Path) -> None:
    del draw, _parent(tree, path)[path[-1]]


def _rename(draw: st.DrawFn, tree: dict[str, Any], path: Path) -> None:
    parent = _parent(tree, path)
    if isinstance(parent, dict):
        odd = st.sampled_from([None, True, 1, 1.5, datetime.date(2001, 1, 1), ("a",)])
        misspelt = st.sampled_from([str(path[-1])[:-1], str(path[-1]) + "s", str(path[-1]).upper()])
        new = draw(
            st.one_of(misspelt, st.sampled_from(KEYS), st.sampled_from(DOTTED), st.sampled_from(WORDS), odd)
        )
        parent[new] = parent.pop(path[-1])


def _replace(draw: st.DrawFn, tree: dict[str, Any], path: Path) -> None:
    _parent(tree, path)[path[-1]] = draw(VALUES)


def _rescale(draw: st.DrawFn, tree: dict[str, Any], path: Path) -> None:
    """A number where one is expected, if there is any."""
    fitting = [p for p in _paths(tree) if isinstance(_at(tree, p), int | float)] or [path]
    chosen = draw(st.sampled_from(fitting))
    _parent(tree, chosen)[chosen[-1]] = draw(ENDS)


def _rechoose(draw: st.DrawFn, tree: dict[str, Any], path: Path) -> None:
    """Another kind of thing, and the keys of the one that it was."""
    fitting = [p for p in _paths(tree) if p[-1] in ("name", "metric")] or [path]
    chosen = draw(st.sampled_from(fitting))
    _parent(tree, chosen)[chosen[-1]] = draw(st.sampled_from([*NAMES, *METRICS]))


def _graft(draw: st.DrawFn, tree: dict[str, Any], path: Path) -> None:
    """A part of another study, often the one at the same place."""
    same = [name for name, paths in ALL_PATHS.items() if path in paths]
    if same and draw(st.booleans()):
        source = _at(TREES[draw(st.sampled_from(same))], path)
    else:
        name, other = draw(st.sampled_from(SUBTREES))
        source = _at(TREES[name], other)
    _parent(tree, path)[path[-1]] = copy.deepcopy(source)


def _swap(draw: st.DrawFn, tree: dict[str, Any], path: Path) -> None:
    other = draw(st.sampled_from(_paths(tree)))
    shorter = min(len(path), len(other))
    if path[:shorter] != other[:shorter]:  # else one is a part of the other
        first, second = _parent(tree, path), _parent(tree, other)
        first[path[-1]], second[other[-1]] = second[other[-1]], first[path[-1]]


def _share(draw: st.DrawFn, tree: dict[str, Any], path: Path) -> None:
    """The same object twice: an anchor and its alias."""
    name = draw(st.sampled_from(KEYS))
    parent = _parent(tree, path)
    if isinstance(parent, dict) and name != path[-1]:
        parent[name] = parent[path[-1]]


def _search(draw: st.DrawFn, tree: dict[str, Any], path: Path) -> None:
    del path
    if isinstance(tree.get("search"), dict):
        searched = draw(st.sampled_from([*DOTTED, *(p for p in WORDS if p.strip())]))
        tree["search"][searched] = draw(distributions())


def _circle(draw: st.DrawFn, tree: dict[str, Any], path: Path) -> None:
    """Conditions on each other."""
    del path
    search = tree.get("search")
    searched = [p for p, d in search.items() if isinstance(d, dict)] if isinstance(search, dict) else []
    if searched:
        first, second = draw(st.sampled_from(searched)), draw(st.sampled_from(searched))
        search[first]["when"] = {second: draw(SCALARS)}
        if draw(st.booleans()):
            search[second]["when"] = {first: draw(SCALARS)}


def _narrow(draw: st.DrawFn, tree: dict[str, Any], path: Path) -> None:
    """One thing that is searched, changed a little."""
    del path
    search = tree.get("search")
    searched = [d for d in search.values() if isinstance(d, dict)] if isinstance(search, dict) else []
    if searched:
        changed = draw(st.sampled_from(searched))
        kind = draw(
            st.sampled_from([kind for kind in ("float", "int", "choice") if kind in changed] or ["int"])
        )
        key = draw(st.sampled_from(["log", "step", "end", "when"]))
        if key == "end" and isinstance(changed.get(kind), list) and changed[kind]:
            changed[kind][draw(st.sampled_from([0, -1]))] = draw(st.one_of(ENDS, SCALARS))
        elif key == "when":
            changed["when"] = {draw(st.sampled_from(DOTTED)): draw(st.one_of(SCALARS, st.just("ipm")))}
        else:
            changed[key] = draw(st.booleans()) if key == "log" else draw(ENDS)


def _section(draw: st.DrawFn, tree: dict[str, Any], path: Path) -> None:
    """A part of a study that most do without."""
    del path
    sections: dict[str, Any] = {
        "start_from": [
            draw(st.one_of(st.sampled_from(WORDS), st.dictionaries(st.sampled_from(DOTTED), VALUES)))
        ],
        "constraints": [
            {"metric": draw(st.sampled_from([*METRICS, *WORDS])), "max": draw(ENDS), "min": draw(ENDS)}
        ],
        "objectives": [{"metric": draw(st.sampled_from([*METRICS, *WORDS])), "mode": "min"}]
        * draw(st.integers(0, 2)),
        "sampler": {"name": draw(st.sampled_from(SAMPLERS)), "seed": draw(ENDS), "points": draw(ENDS)},
        "scheduler": {"name": draw(st.sampled_from(SCHEDULERS)), "grace_steps": draw(ENDS)},
        "confirm": {"trials": draw(ENDS), "seeds": draw(ENDS)},
        "warm_start": [draw(st.sampled_from(WORDS))],
    }
    name = draw(st.sampled_from(sorted(sections)))
    chosen = sections[name]
    if isinstance(chosen, dict):
        kept = draw(st.sampled_from(sorted(chosen)))  # most keys fit one kind only
        chosen = {key: value for key, value in chosen.items() if key in ("name", kept)}
    tree[name] = chosen


Mutation = Callable[[st.DrawFn, dict[str, Any], Path], None]
MUTATIONS: list[Mutation] = [
    *(
        _drop,
        _rename,
        _replace,
        _rescale,
        _rescale,
        _rechoose,
        _graft,
        _swap,
        _share,
        _search,
        _circle,
        _section,
    )
]


@st.composite
def mutated_trees(draw: st.DrawFn) -> dict[str, Any]:
    """A shipped study after one to three mutations."""
    tree = copy.deepcopy(TREES[draw(st.sampled_from(sorted(TREES)))])
    for _ in range(draw(st.sampled_from([1, 1, 1, 2, 3]))):
        paths = _paths(tree)
        if paths:
            draw(st.sampled_from(MUTATIONS))(draw, tree, draw(st.sampled_from(paths)))
    return tree


def written(tree: Any) -> str:
    """Its YAML, with the parts that no plain data make."""
    text = yaml.dump(
        tree, Dumper=yaml.SafeDumper, sort_keys=False, allow_unicode=True, default_flow_style=None
    )
    for index, raw in reversed(list(enumerate(RAW))):
        text = text.replace(_raw(index), raw)
    return text


SNIPPETS = [
    *(
        "\t",
        "\n",
        "\n\n",
        " ",
        "  ",
        ":",
        ": ",
        "-",
        "- ",
        "{",
        "}",
        "[",
        "]",
        ",",
        "&a ",
        "*a",
        "<<: *a\n",
        "!!str ",
        "#",
    ),
    *(
        "---\n",
        "...\n",
        "--- x\n",
        "%YAML 1.1\n---\n",
        "? ",
        "|",
        ">",
        "'",
        '"',
        "\\",
        "\0",
        "\x07",
        "\x85",
        "\u2028",
    ),
    *(
        "\ufeff",
        "\ud800",
        "é",
        "🙂",
        "name: x\n",
        "experiment: {}\n",
        "on: 1\n",
        "1: 2\n",
        "'': 3\n",
        "~",
        "null",
        "=",
        ".",
    ),
    *(f" {raw} " for raw in RAW),
]


@st.composite
def mutated_texts(draw: st.DrawFn) -> bytes:
    """A shipped study's text after one to four edits of characters, lines or bytes."""
    text = TEXTS[draw(st.sampled_from(sorted(TEXTS)))]
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(text)))
        end = min(len(text), start + draw(st.sampled_from([0, 0, 1, 1, 2, 8, 80, 1000])))
        new = draw(st.one_of(st.sampled_from(SNIPPETS), st.just(""), TEXT, st.just(text[start:end] * 2)))
        text = text[:start] + new + text[end:]
    data = text.encode("utf-8", errors="surrogatepass")
    if draw(st.integers(0, 3)) == 0:
        start = draw(st.integers(0, len(data)))
        data = (
            data[:start] + draw(st.binary(min_size=1, max_size=3)) + data[start + draw(st.integers(0, 2)) :]
        )
    return data


mutated_files = st.one_of(
    mutated_trees().map(lambda tree: written(tree).encode("utf-8", errors="surrogatepass")), mutated_texts()
)

ASSIGNED_KEYS = st.one_of(
    st.sampled_from(DOTTED).map(lambda path: f"experiment.{path}"),
    st.sampled_from(
        [*KEYS, *WORDS, "search.model.eta", "search.model.eta.float", "objectives.0.metric", "a." * 3000]
    ),
    TEXT,
)
ASSIGNMENTS = st.one_of(
    st.tuples(
        ASSIGNED_KEYS,
        st.one_of(ENDS.map(str), st.sampled_from(RAW), VALUES.map(written), st.sampled_from(SNIPPETS), TEXT),
    ).map("=".join),
    TEXT,
)
