"""The questions of an lm-eval task, to be asked freely: for looking at answers, not for its published metric.

A task of several choices becomes its question with the right choice's text as the expected answer.
"""

from importlib import import_module
from typing import Any

from ctplab.errors import InputError
from ctplab.measure.tasks import local
from ctplab.measure.tasks.harness import only_errors
from ctplab.models import hub
from ctplab.text.questions import Asked


def questions_of(name: str, limit: int | None = None) -> list[Asked]:
    """The first ``limit`` questions of the task called ``name``.

    Raises InputError if lm-eval is missing, knows no such task or cannot get its data, and for groups of tasks.
    """
    try:
        configurable: Any = import_module("lm_eval.api.task").ConfigurableTask
        manager: Any = import_module("lm_eval.tasks").TaskManager
    except ImportError:
        raise InputError("tasks need lm-eval: pip install 'ctplab[tasks]'") from None
    with only_errors():
        config = local.config(name)
        try:
            if config is not None:
                task = configurable(config=config)
            else:
                known = manager(include_defaults=True)
                if name not in known.all_tasks:
                    raise InputError(f"lm-eval knows no task {name!r}; 'lm-eval ls tasks' names them all")
                with hub.or_cache():
                    tasks = known.load([name])["tasks"]
                if len(tasks) != 1:
                    raise InputError(f"{name} is a group of {len(tasks)} tasks; name one of them")
                (task,) = tasks.values()
            documents = list(task.test_docs() if task.has_test_docs() else task.validation_docs())[:limit]
            return [Asked(_text(task, document), _expected(task, document)) for document in documents]
        except (ConnectionError, FileNotFoundError) as error:
            reason = str(error).split("\n")[0]
            raise InputError(f"the data of the task {name} cannot be had ({reason})") from error


def _text(task: Any, document: Any) -> str:
    text = str(task.doc_to_text(document)).strip()
    return text.removesuffix("Answer:").removesuffix("A:").strip() or text


def _expected(task: Any, document: Any) -> tuple[str, ...]:
    """The right answer's text. Several right ones stay several."""
    target = task.doc_to_target(document)
    choices = task.doc_to_choice(document) if task.config.doc_to_choice is not None else None
    if choices is not None and isinstance(target, int):
        return (str(choices[target]).strip(),)
    return tuple(str(one).strip() for one in (target if isinstance(target, list) else [target]))
