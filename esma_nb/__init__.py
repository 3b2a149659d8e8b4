"""Measure, improve and understand whether a language model knows what it knows"""
__version__ = "0.1.0"

_modules = dict(load_model='engines.models', hf_engine='engines.hf', load_rows='datasets.registry', meta_claim='prompts.elicitation',
    evaluate='evaluation.evaluate', eval_model='evaluation.evaluate', scores='evaluation.records', train='evolution.train', sft_meta='sft.train',
    compare='evaluation.compare', report='reports.report')
__all__ = list(_modules)

def __getattr__(name): # Loaded when first asked for (PEP 562), so that `import esma_nb` is instant
    from importlib import import_module
    if name not in _modules: raise AttributeError(f"module 'esma_nb' has no attribute {name!r}")
    return getattr(import_module(f'esma_nb.{_modules[name]}'), name)

def __dir__(): return sorted([*globals(), *_modules])
