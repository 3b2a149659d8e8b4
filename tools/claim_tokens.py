"""How many tokens a meta reply needs: read the claims of one model at several limits, by the first word and by the rules.

    for set in nq_open trivia_qa; do python tools/claim_tokens.py smollm2 80 $set en data/$set; done > runs/claims_smollm2.md

data has the sets in the shape they have on the hub. A row a limit: how many claims are yes, no and unreadable by either reading, how many the rules read that the first word left unread, how many
they read the other way or leave unread, and the seconds that the replies took. The most frequent unreadable replies stand below.
"""
import re,sys
from collections import Counter
from time import perf_counter
from esma_nb.metrics.normalization import normalize_text
from esma_nb.prompts.templates import meta_prompt
from esma_nb.prompts.claim_parsing import reads_yes
from esma_nb.datasets.registry import load_rows
from esma_nb.engines.hf import hf_engine
from esma_nb.engines.models import load_model

yes = dict(en='yes', ko='예|네', zh='是|是的.*|知道.*', es='si')
no = dict(en='no', ko='아니요|아니오|아뇨|아니', zh='否|不|(?:不是|不知道|不确定|不清楚).*', es='no')

def first_word(text, lang): # The reading until version 9f80691
    word = re.search(r'[^\W\d_]+', normalize_text(text))
    if not word: return None
    return True if re.fullmatch(f'{yes[lang]}|yes', word[0]) else False if re.fullmatch(f'{no[lang]}|no', word[0]) else None

def counted(claims): return '/'.join(str(sum(c is v for c in claims)) for v in (True, False, None))

def main(model='demo', n='80', dataset='demo', lang='en', data_dir=None):
    rows,_ = load_rows(dataset, None, lang, data_dir, int(n), 42)
    generate = hf_engine(*load_model(model, 'float32', 'cpu'))
    print(f'{model}, {len(rows)} questions of {dataset} ({lang}): yes/no/unreadable\n\n| meta tokens | first word | rules | newly read | turned or lost | seconds |\n'
        '|---|---|---|---|---|---|')
    generate([meta_prompt(r['question'], lang, 1) for r in rows])
    for tokens in (4, 8, 12, 16, 32):
        start = perf_counter()
        replies = [r.text for r in generate([meta_prompt(r['question'], lang, tokens) for r in rows])]
        seconds = perf_counter()-start
        old,new = ([read(t, lang) for t in replies] for read in (first_word, reads_yes))
        print(f"| {tokens} | {counted(old)} | {counted(new)} | {sum(o is None and w is not None for o,w in zip(old, new))} "
            f"| {sum(o is not None and w is not o for o,w in zip(old, new))} | {seconds:.1f} |", flush=True)
    for title,chosen in (('Read otherwise than by the first word', [t for t,o,w in zip(replies, old, new) if o is not w]),
            ('Unreadable', [t for t,w in zip(replies, new) if w is None])):
        print(f'\n{title}, at {tokens} tokens:\n')
        for t,k in Counter(chosen).most_common(12): print(f'- {k} × {t!r}')

if __name__ == '__main__': main(*sys.argv[1:])
