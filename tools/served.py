"""Does a model behind a server say the same as the local engine, and does our client keep the server as busy as it can be?

    transformers serve FOLDER --host 127.0.0.1 --port 8431      # from `pip install 'transformers[serving]'`
    python tools/served.py FOLDER nq_open 200 --data_dir DIR

The server gets each request twice: from `esma_nb_eval_api`, and from a bare asynchronous client that does nothing else, half of it before and half after.
"""
import asyncio,json,subprocess,sys,tempfile,time
from argparse import ArgumentParser
from pathlib import Path
import httpx2
from esma_nb.datasets.registry import load_rows
from esma_nb.prompts.templates import direct_prompt,meta_prompt

async def bare(url, model, prompts, concurrency):
    queue = iter(prompts)
    async with httpx2.AsyncClient(timeout=600) as client:
        async def hand():
            for p in queue: (await client.post(f'{url}/chat/completions', json=dict(model=model, temperature=0,
                max_completion_tokens=p.max_new_tokens, messages=[dict(role='user', content=p.text)]))).raise_for_status()
        began = time.perf_counter()
        await asyncio.gather(*[hand() for _ in range(concurrency)])
        return time.perf_counter()-began

def command(module, *words):
    began = time.perf_counter()
    subprocess.run([sys.executable, '-m', f'esma_nb.{module}', *map(str, words)], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter()-began

def lines(path): return {r['question_id']: r for r in map(json.loads, Path(path).read_text(encoding='utf-8').splitlines())}

def main(model, dataset, n, data_dir, url, concurrency):
    prompts = [p(r['question']) for r in load_rows(dataset, data_dir=data_dir, num_samples=n)[0] for p in (direct_prompt, meta_prompt)]
    half = len(prompts)//2
    data = ['--dataset', dataset, '--num_samples', n, *(['--data_dir', data_dir] if data_dir else [])]
    asyncio.run(bare(url, model, prompts[:4], concurrency)) # Loads the model
    with tempfile.TemporaryDirectory() as tmp:
        seconds = asyncio.run(bare(url, model, prompts[:half], concurrency))
        ours = command('evaluation.api_jobs', '--model', model, '--base_url', url, '--key_env', 'none', '--concurrency', concurrency, '--timeout', 600, *data,
            '--output_dir', f'{tmp}/api')
        seconds += asyncio.run(bare(url, model, prompts[half:], concurrency))
        print(f'bare client {len(prompts)/seconds:.3f} requests/s, esma_nb_eval_api {len(prompts)/ours:.3f} with its start: {seconds/ours:.1%}', flush=True)
        command('evaluation.evaluate', '--model', model, *data, '--output_dir', f'{tmp}/local')
        far,near = (lines(f'{tmp}/{k}/records/meta.jsonl') for k in ('api', 'local'))
        same = [i for i in near if (far[i]['correct'], far[i]['yes'])==(near[i]['correct'], near[i]['yes'])]
        words = [i for i in near if (far[i]['direct_output'], far[i]['meta_output'])==(near[i]['direct_output'], near[i]['meta_output'])]
        print(f'{len(near)} questions: same bits in {len(same)/len(near):.1%}, same words in {len(words)/len(near):.1%}')
        for i in sorted(set(near)-set(same)):
            for k,r in dict(server=far[i], local=near[i]).items(): print(i, k, r['failed'], r['correct'], r['yes'], repr(r['direct_output']), repr(r['meta_output']))

if __name__=='__main__':
    p = ArgumentParser()
    p.add_argument('model'); p.add_argument('dataset'); p.add_argument('n', type=int)
    p.add_argument('--data_dir'); p.add_argument('--url', default='http://127.0.0.1:8431/v1'); p.add_argument('--concurrency', type=int, default=4)
    main(**vars(p.parse_args()))
