"""ctplab: compress a language model, learn a soft prompt through its frozen weights, measure what comes back."""

from ctplab.starting import guard

guard()

from ctplab.compression.reports import CompressionReport as CompressionReport
from ctplab.compression.walk import compress as compress
from ctplab.decoding.generate import generate as generate
from ctplab.decoding.sampler import Sampler as Sampler
from ctplab.decoding.steps import stream as stream
from ctplab.disk import kept_in as kept_in
from ctplab.errors import InputError as InputError
from ctplab.formats.checkpoint import save as save
from ctplab.formats.exchange import export_prompt as export_prompt
from ctplab.formats.exchange import import_prompt as import_prompt
from ctplab.formats.fetch import get_model as get_model
from ctplab.formats.gguf import import_model as import_model
from ctplab.formats.gguf_export import export_gguf as export_gguf
from ctplab.formats.gptq import export as export
from ctplab.formats.loading import load as load
from ctplab.formats.prompt_file import SavedPrompt as SavedPrompt
from ctplab.formats.prompt_file import attach as attach
from ctplab.formats.prompt_file import load as load_prompt
from ctplab.formats.streaming import compress_to as compress_to
from ctplab.formats.tokens import export_tokens as export_tokens
from ctplab.formats.tuned import fold as fold
from ctplab.inspect.nearest import inspect_prompt as inspect_prompt
from ctplab.inspect.nearest import nearest_hard_prompt as nearest_hard_prompt
from ctplab.inspect.similarity import cosine_histogram as cosine_histogram
from ctplab.inspect.similarity import project as project
from ctplab.learning.keys_values import intact as intact
from ctplab.learning.keys_values import learn_kv as learn_kv
from ctplab.learning.lora import Adapter as LoraAdapter
from ctplab.learning.lora import learn_lora as learn_lora
from ctplab.learning.recompute import recompute as recompute
from ctplab.learning.rows import learn as learn
from ctplab.learning.rows import learn_steps as learn_steps
from ctplab.learning.saving import save_prompt as save_prompt
from ctplab.learning.teacher import cached_teacher as cached_teacher
from ctplab.learning.tuned import learn_tuned as learn_tuned
from ctplab.measure.attention_mass import attention_mass as attention_mass
from ctplab.measure.candidates import rank_hard_prompts as rank_hard_prompts
from ctplab.measure.chosen import choose as choose
from ctplab.measure.chosen import chosen as chosen
from ctplab.measure.fidelity import Fidelity as Fidelity
from ctplab.measure.fidelity import fidelity as fidelity
from ctplab.measure.latency import latency as latency
from ctplab.measure.lens import hurt_and_helped as hurt_and_helped
from ctplab.measure.lens import lens as lens
from ctplab.measure.perplexity import perplexity as perplexity
from ctplab.measure.perplexity import window_scores as window_scores
from ctplab.measure.recovery import in_words as in_words
from ctplab.measure.recovery import recover as recover
from ctplab.measure.stats import Interval as Interval
from ctplab.measure.stats import change as change
from ctplab.measure.stats import recovery as recovery
from ctplab.measure.tasks.evaluate import evaluate as ask_tasks
from ctplab.measure.tasks.transferred import transfer_tasks as transfer_tasks
from ctplab.measure.transfer import Target as Target
from ctplab.measure.transfer import transfer as transfer
from ctplab.measure.worth import row_worth as row_worth
from ctplab.models.loading import load_tokenizer as load_tokenizer
from ctplab.prompts.arms import Arm as Arm
from ctplab.prompts.arms import arms as arms
from ctplab.prompts.arms import control as control
from ctplab.prompts.prefix import KVPrefix as KVPrefix
from ctplab.prompts.prefix import Prefix as Prefix
from ctplab.prompts.prefix import hard as hard_prompt
from ctplab.runs.controls import recover_with_controls as recover_with_controls
from ctplab.runs.copies import recompress as recompress
from ctplab.runs.store import Store as Store
from ctplab.runs.study import Study as Study
from ctplab.scores import Score as Score
from ctplab.scores import WindowScores as WindowScores
from ctplab.specs import CompressionSpec as CompressionSpec
from ctplab.specs import LoraSpec as LoraSpec
from ctplab.specs import PromptSpec as PromptSpec
from ctplab.text.corpora import Corpus as Corpus
from ctplab.text.corpora import Split as Split
from ctplab.text.corpora import corpus as corpus

__version__ = "0.1.0"
