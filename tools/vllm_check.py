"""Compare vLLM with the hf engine, in float32, on one model: replies and log-odds of the base and of members, exact restoring, and a stale prefix cache.

    python tools/vllm_check.py MODEL DATASET [DATA_DIR [eager|compiled]] > runs/vllm_check_NAME.txt
"""
import sys
from functools import partial
from time import perf_counter
from esma_nb.engines.vllm import vllm_engine
from esma_nb.engines.vllm_model import forget_prefixes,prepare_environment,start_vllm,vllm_weights
prepare_environment()
from esma_nb.datasets.registry import load_rows
from esma_nb.engines.hf import hf_engine
from esma_nb.engines.models import load_model
from esma_nb.evolution.es import MasterWeights,sample_population
from esma_nb.prompts.elicitation import meta_claim

def compare(found, expected): # Equal replies, their number, and the largest difference of log-odds
    odds = [abs(a.log_odds-b.log_odds) for a,b in zip(found, expected) if b.log_odds is not None]
    return sum(a.text==b.text for a,b in zip(found, expected)),len(found),max(odds)

def main(name, dataset, data_dir=None, mode='eager', questions=32, members=4, visits=100, sigma=.005):
    claim,rows = meta_claim(),load_rows(dataset, 'validation', data_dir=data_dir, num_samples=questions)[0]
    prompts = [f(r['question']) for r in rows for f in (claim.direct, claim.extra)]
    base,tokenizer = load_model(name, 'float32', 'cpu')
    model,_ = load_model(name, 'float32', 'cpu')
    plain,hf = MasterWeights(base),hf_engine(base, tokenizer)
    llm = start_vllm(name, max_model_len=512, enforce_eager=mode=='eager')
    master = MasterWeights(model, sink=partial(vllm_weights, llm), written=partial(forget_prefixes, llm))
    generate = vllm_engine(llm, model, tokenizer)
    print(f"{name}, {dataset}: {questions} questions x 2 prompts, float32, {mode}, sigma {sigma}")
    expected = hf(prompts)
    print('base: {} of {} replies equal, log-odds within {:.1e}'.format(*compare(generate(prompts), expected)))
    before,population = llm.collective_rpc('weights_sha256'),[(k, s*sigma) for k,s in sample_population(42, 0, members)]
    for i,member in enumerate(population):
        with plain.perturbed(*member): theirs = hf(prompts)
        with master.perturbed(*member): ours = generate(prompts)
        print(f'member {i}: ' + '{} of {} replies equal, log-odds within {:.1e}; '.format(*compare(ours, theirs))
            + f'{sum(a.text!=b.text for a,b in zip(theirs, expected))} replies differ from the base')
    start = perf_counter()
    for i in range(visits):
        with master.perturbed((42, 1, i), sigma): pass
    seconds = perf_counter()-start
    print(f"{visits} members written and restored: {seconds/visits/2:.3f} s a write; all parameters as at the start: {llm.collective_rpc('weights_sha256')==before}")
    master.written = lambda: None # A stale cache, on purpose
    generate(prompts)
    master.load_member(*population[0])
    stale = generate(prompts)
    forget_prefixes(llm)
    with plain.perturbed(*population[0]): theirs = hf(prompts)
    print('without a reset of the prefix cache: {} of {} replies equal, log-odds within {:.1e}'.format(*compare(stale, theirs)))
    print('after the reset:                     {} of {} replies equal, log-odds within {:.1e}'.format(*compare(generate(prompts), theirs)))

if __name__=='__main__': main(*sys.argv[1:])
