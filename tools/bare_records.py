"""The bits of a run without the words of its questions: `python tools/bare_records.py RUN... OUT`; scores, compare and report still read them"""
import os,sys
from dataclasses import asdict,replace
from pathlib import Path
from esma_nb.evaluation.records import load_records,record_files
from esma_nb.core.files import append_lines,atomic_write

def bare(record)->dict: # What is left to count: question_id, correct, yes, unparsed, failed, log_odds
    r = asdict(replace(record, question='', answers=[], direct_output='', meta_output=None, seconds=None))
    if r['log_odds'] is not None: r['log_odds'] = round(r['log_odds'], 4)
    return {k: v for k,v in r.items() if v is not None and k not in ('p_yes', 'direct_tokens', 'meta_tokens') and (v is not False or k in ('correct', 'yes'))}

def strip(run:Path, out:Path):
    "Copy what a run's folder says about itself, and its records without words."
    (out/'records').mkdir(parents=True, exist_ok=True)
    data = os.environ.get('ESMA_NB_DATA') or '$ESMA_NB_DATA'
    for path in record_files(run).values():
        with atomic_write(out/'records'/path.name) as draft: append_lines(draft, [bare(r) for r in load_records(path)])
    for name in ('args.json', 'metrics.jsonl', 'journal.jsonl', 'summary.json'): # The last of them says that all is there
        if (run/name).exists(): (out/name).write_text((run/name).read_text(encoding='utf-8').replace(data, '$ESMA_NB_DATA'), encoding='utf-8')

if __name__=='__main__':
    *runs,out = map(Path, sys.argv[1:])
    for run in runs: strip(run, out/run.name)
