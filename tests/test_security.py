"""The code never executes or unpickles foreign files, and opens images only in allowed formats."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# These compare with transformers, which needs torch.
MAY_IMPORT_TORCH = (
    "parity_transformers.py", "measure_generate.py", "measure_serving.py", "bench_step.py", "torch_step.py",
    "input_pipeline.py", "check_folder.py",
)  # fmt: skip
FILES = sorted(p for folder in ("llava_jax", "configs", "launch") for p in (ROOT / folder).rglob("*.py"))
NEVER_IMPORTED = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "torch"}
NEVER_CALLED = {"eval", "exec", "compile", "__import__", "os.system", "os.popen", "tempfile.mktemp", "yaml.load"}
NEVER_TRUE = {"allow_pickle", "trust_remote_code", "shell"}


def passes_user_flag(call: ast.Call, value: ast.expr, package_functions: set[str]) -> bool:
    """Returns whether a call passes a variable `allow_pickle` to a function of this package."""
    is_flag = isinstance(value, ast.Name | ast.Attribute) and ast.unparse(value).split(".")[-1] == "allow_pickle"
    return is_flag and ast.unparse(call.func) in package_functions


def violations(tree: ast.AST) -> list[str]:
    """Returns every forbidden import, call or keyword with its line."""
    messages, package_functions, keyword_names = [], {"llava_jax.load"}, set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "llava_jax":
            package_functions |= {alias.asname or alias.name for alias in node.names}
        if isinstance(node, ast.FunctionDef):
            if "allow_pickle" in {a.arg for a in (*node.args.args, *node.args.kwonlyargs)}:
                package_functions.add(node.name)  # its own calls are checked too
            # @renamed_keywords(pickles_allowed="allow_pickle")
            calls = [call for call in node.decorator_list if isinstance(call, ast.Call)]
            named = [call for call in calls if ast.unparse(call.func) == "renamed_keywords"]
            keyword_names |= {keyword.value for call in named for keyword in call.keywords}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            messages += [f"{node.lineno}: import {n}" for n in names if n.split(".")[0] in NEVER_IMPORTED]
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            keywords = {k.arg: k.value for k in node.keywords}
            if name in NEVER_CALLED or name.endswith(("torch.load", ".read_pickle")):
                messages.append(f"{node.lineno}: {name}()")
            if name.split(".")[-2:] == ["Image", "open"] and "formats" not in keywords:
                messages.append(f"{node.lineno}: Image.open without formats=")
            for key in NEVER_TRUE & keywords.keys():
                is_off = isinstance(keywords[key], ast.Constant) and keywords[key].value is False
                if not is_off and not (
                    key == "allow_pickle" and passes_user_flag(node, keywords[key], package_functions)
                ):
                    messages.append(f"{node.lineno}: {key}={ast.unparse(keywords[key])}")
        if isinstance(node, ast.Constant) and node.value in NEVER_TRUE - {"shell"} and node not in keyword_names:
            messages.append(f"{node.lineno}: the keyword {node.value!r} by name")
    return messages


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_forbidden_call_or_import(path):
    messages = violations(ast.parse(path.read_text(encoding="utf-8")))
    assert [text for text in messages if not (path.name in MAY_IMPORT_TORCH and text.endswith("import torch"))] == []


@pytest.mark.parametrize(
    "text",
    [
        "import pickle", "from pickle import loads", "def f():\n    import torch", "x = eval('1')", "exec(text)",
        "torch.load(f)", "pd.read_pickle(f)", "np.load(f, allow_pickle=True)", "np.load(f, allow_pickle=flag)",
        "AutoModel.from_pretrained(n, trust_remote_code=True)", "f(**{'trust_remote_code': True})", "yaml.load(text)",
        "from numpy import load\nload(f, allow_pickle=allow_pickle)",
        "def load(f, allow_pickle):\n    np.load(f, allow_pickle=allow_pickle)",
        "def load(f, **options): ...\nload(f, allow_pickle=allow_pickle)",
        "np.load(f, allow_pickle=flags.allow_pickle)",
        "np.save(f, x, allow_pickle=allow_pickle)", "f(**dict(allow_pickle=allow_pickle))", "{'allow_pickle': flag}",
        "from llava_jax.api.load import load\nload(f, allow_pickle=True)",
        "from llava_jax.api.load import load\nload(f, allow_pickle=is_trusted)",
        "from llava_jax.api.load import load\nnp.load(f, allow_pickle=allow_pickle)",
        "from llava_jax.api.load import load\nload(f, trust_remote_code=allow_pickle)",
        "subprocess.run(c, shell=True)", "os.system(c)", "Image.open(path)", "PIL.Image.open(path)",
    ],
)  # fmt: skip
def test_each_forbidden_pattern_is_detected(text):
    assert len(violations(ast.parse(text))) == 1


@pytest.mark.parametrize(
    "text",
    ["jax.eval_shape(f, x)", "Image.open(p, formats=('PNG',))", "np.load(f, allow_pickle=False)", "re.compile(p)",
     "jax.jit(f).lower(x).compile()", "open(path)", "yaml.safe_load(text)",
     "from llava_jax.api.load import load\nload(f, allow_pickle=allow_pickle)",
     "def load(f, allow_pickle): ...\nload(f, allow_pickle=allow_pickle)",
     "import llava_jax\nllava_jax.load(f, allow_pickle=flags.allow_pickle)",
     "@renamed_keywords(pickles_allowed='allow_pickle')\ndef load(f, allow_pickle=False): ..."],
)  # fmt: skip
def test_allowed_patterns_are_accepted(text):
    assert violations(ast.parse(text)) == []


def test_torch_pickles_are_read_once_as_weights_only():
    calls = [
        (path.name, line.strip()) for path in FILES for line in path.read_text(encoding="utf-8").splitlines()
        if "torch.load(" in line
    ]  # fmt: skip
    assert [name for name, _ in calls] == ["pickle_reader.py"], "in the program of its subprocess"
    assert "weights_only=True" in calls[0][1]


def test_package_ships_no_pickles_or_binaries():
    kinds = {".pkl", ".pickle", ".pt", ".pth", ".bin", ".npy", ".npz", ".so", ".pyc"}
    shipped = [p for p in (ROOT / "llava_jax").rglob("*") if p.suffix in kinds and "__pycache__" not in p.parts]
    assert shipped == []
