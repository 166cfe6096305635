"""Custom tasks come as YAML files for lm-eval. This looks at one before lm-eval does, which would run what it names.

lm-eval imports the Python file beside a task for ``!function``, and it renders templates without a sandbox. So a task
that calls code is refused: whoever trusts it can give it to lm-eval itself.
"""

from pathlib import Path

from ctplab.errors import InputError
from ctplab.text_files import DEPTH, read_text, told


def check_task(path: Path, seen: tuple[Path, ...] = ()) -> None:
    """Raise InputError if the task in ``path``, or one that it includes, is no task or would run code."""
    import yaml  # comes with transformers

    text = read_text(path)
    with told(path):
        try:
            whole = yaml.compose(text, Loader=yaml.SafeLoader)
        except (yaml.YAMLError, RecursionError, ValueError) as error:
            raise InputError(f"it is no YAML: {' '.join(str(error).split())[:160]}") from None
        if not isinstance(whole, yaml.MappingNode):
            raise InputError("it holds no mapping such as 'task: name'")
        _check_node(whole)
        names = {key.value: value for key, value in whole.value if isinstance(key.value, str)}
        if not {"task", "group", "include"} & set(names):
            raise InputError("it has no 'task'")
    base = names.get("include")
    if base is not None:
        if not isinstance(base, yaml.ScalarNode):
            raise InputError(f"{path}: include must be the path of one file")
        other = (path.parent / base.value).resolve()
        if other in seen or len(seen) > DEPTH:
            raise InputError(f"{path}: the files include each other in a circle")
        check_task(other, (*seen, other))


def _check_node(root: object) -> None:
    """Raise InputError if a value calls code: a tag such as ``!function``, or Python's internals in a template."""
    level: list = [root]
    for _ in range(DEPTH):
        below: list = []
        for node in level:
            if node.tag.startswith("!"):
                raise InputError(f"it uses {node.tag}, which runs code from beside it: that is not done here")
            if isinstance(node.value, str):
                if "{" in node.value and "__" in node.value:
                    raise InputError(f"its template on line {node.start_mark.line + 1} reaches into Python (__)")
            else:
                below += [part for item in node.value for part in (item if isinstance(item, tuple) else (item,))]
        if not below:
            return
        level = below
    raise InputError(f"it is nested deeper than {DEPTH} levels")
