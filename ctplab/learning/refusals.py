"""What cannot be learned, said before the first step: recipe, text, teacher and models that do not fit together."""

from collections.abc import Sequence

from ctplab import parallel
from ctplab.errors import InputError
from ctplab.learning.teacher import MemoryTeacher, Teacher, TopKTeacher
from ctplab.models import Model
from ctplab.models.anatomy import check_context, check_ids, embeddings
from ctplab.prompts.head import Halves
from ctplab.specs import PromptSpec
from ctplab.text.corpora import Split


def check(
    models: Sequence[Model], train: Split, validation: Split, spec: PromptSpec, k: int, teacher: Teacher | None
) -> None:
    """Raise InputError if k positions cannot be learned in front of ``models`` from these texts as ``spec`` says."""
    if spec.taught and teacher is None:
        what = "the KL objective" if spec.kl > 0 else "the hidden-state loss"
        raise InputError(f"{what} needs the full model as teacher")
    if spec.hidden > 0 and not isinstance(teacher, MemoryTeacher):
        raise InputError("the hidden-state loss needs the full model itself as teacher: a cached one has no states")
    if spec.batch < parallel.size():
        raise InputError(f"a batch of {spec.batch} cannot be shared by {parallel.size()} processes; raise the batch")
    shapes = {tuple(embeddings(model).shape) for model in models}
    if len(shapes) > 1:
        raise InputError(f"models to learn one prompt on need one vocabulary and width, not {sorted(shapes)}")
    vocabulary = models[0].get_output_embeddings().weight.shape[0]
    if spec.taught and teacher is not None and teacher.vocabulary != vocabulary:
        raise InputError(f"the teacher has {teacher.vocabulary} tokens, the model {vocabulary}: both need the same")
    if isinstance(teacher, TopKTeacher) and teacher.corpus != train.fingerprint:
        raise InputError("the cached teacher was made for other text or windows than are learned from")
    for model in models:
        check_context(model, k, train.seq_len)
    for split in (train, validation):
        check_ids(models[0], split.windows)


def check_states(cuts: Sequence[Halves], teacher: MemoryTeacher) -> None:
    """Raise InputError if the teacher's hidden states and those of the models cannot be compared."""
    for width in [teacher.width, *(cut.width for cut in cuts)]:
        if width is None:
            raise InputError("the hidden-state loss needs a model whose head makes its logits and does nothing else")
        if width != teacher.width:
            raise InputError(f"the teacher's hidden states are {teacher.width} wide, the model's {width}")
