"""ctplab: compress a language model, learn a soft prompt through its frozen weights, measure what comes back."""

from ctplab.compress.checkpoint import save as save
from ctplab.compress.gptq_format import export as export
from ctplab.compress.loading import load as load
from ctplab.compress.stream import compress_to as compress_to
from ctplab.compress.walk import CompressionReport as CompressionReport
from ctplab.compress.walk import compress as compress
from ctplab.corpora import Corpus as Corpus
from ctplab.corpora import Split as Split
from ctplab.corpora import corpus as corpus
from ctplab.errors import InputError as InputError
from ctplab.inspect.nearest import inspect_prompt as inspect_prompt
from ctplab.inspect.nearest import nearest_hard_prompt as nearest_hard_prompt
from ctplab.inspect.similarity import cosine_histogram as cosine_histogram
from ctplab.inspect.similarity import project as project
from ctplab.measure.latency import latency as latency
from ctplab.measure.lens import hurt_and_helped as hurt_and_helped
from ctplab.measure.lens import lens as lens
from ctplab.measure.perplexity import Score as Score
from ctplab.measure.perplexity import perplexity as perplexity
from ctplab.measure.perplexity import window_nll as window_nll
from ctplab.measure.recovery import comparison as comparison
from ctplab.measure.recovery import recover as recover
from ctplab.measure.stats import recovery as recovery
from ctplab.measure.transfer import transfer as transfer
from ctplab.models import load_tokenizer as load_tokenizer
from ctplab.prompts.files import attach as attach
from ctplab.prompts.files import load as load_prompt
from ctplab.prompts.files import save as save_prompt
from ctplab.prompts.generate import generate as generate
from ctplab.prompts.generate import stream as stream
from ctplab.prompts.kv import Arm as Arm
from ctplab.prompts.kv import arms as arms
from ctplab.prompts.learn import learn as learn
from ctplab.prompts.learn import learn_steps as learn_steps
from ctplab.prompts.prefix import Prefix as Prefix
from ctplab.prompts.prefix import hard as hard_prompt
from ctplab.specs import CompressionSpec as CompressionSpec
from ctplab.specs import PromptSpec as PromptSpec

__version__ = "0.1.0"
