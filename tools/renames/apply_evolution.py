import json,re,io,tokenize,sys
from pathlib import Path
R=Path(sys.argv[1]); M=json.load(open('/root/wt/renames/evolution.json'))
G,P,C=M['globals'],M['page_local'],M['exact_text_first']
def key(p):
    s=str(p.relative_to(R)).rsplit('.',1)[0]
    s=s[4:] if s.startswith('nbs/') else s
    return s[len('evolution/'):] if s.startswith('evolution/') else s
used=set()
def ticks(s,m): return re.sub(r'`(\w+)`',lambda x:'`'+m.get(x[1],x[1])+'`',s)
def code(src,m):
    out,last=[],0
    lines=src.splitlines(keepends=True); offs=[0]
    for l in lines: offs.append(offs[-1]+len(l))
    try: toks=list(tokenize.generate_tokens(io.StringIO(src).readline))
    except Exception: return src
    edits=[]
    for i,t in enumerate(toks):
        a,b=offs[t.start[0]-1]+t.start[1],offs[t.end[0]-1]+t.end[1]
        if t.type==tokenize.NAME and t.string in m:
            if m is not G and t.string in('population',) and toks[i-1].string=='.' : continue
            edits.append((a,b,m[t.string])); used.add(t.string)
        elif t.type==tokenize.COMMENT: edits.append((a,b,ticks(t.string,m)))
        elif t.type==tokenize.STRING:
            s=t.string
            if re.match(r'^[rR]?[fF]',s):
                s=re.sub(r'\{[^{}]*\}',lambda x:re.sub(r'(?<![\'"\w])\b(\w+)\b(?![\'"])',lambda y:m.get(y[1],y[1]),x[0]),s)
            elif re.fullmatch(r"'\w+_seconds'",s): s="'"+m.get(s[1:-1],s[1:-1])+"'"
            s=ticks(s,m)
            edits.append((a,b,s))
    for a,b,s in sorted(edits,reverse=True): src=src[:a]+s+src[b:]
    return src
cu=set()
for p in [*R.glob('nbs/**/*.ipynb'),*R.glob('tests/*.py'),*R.glob('tools/*.py')]:
    k=key(p); m=G|P.get(k,{}); cs=[c for c in C if c[0]==k]
    def do(s):
        for f,o,n in cs:
            if o in s: cu.add((f,o)); s=s.replace(o,n)
        return code(s,m)
    if p.suffix=='.py': t=p.read_text(); n=do(t); p.write_text(n); continue
    nb=json.loads(p.read_text())
    for c in nb['cells']:
        s=''.join(c['source'])
        n=do(s) if c['cell_type']=='code' else ticks(s,m)
        if n!=s: c['source']=n.splitlines(keepends=True)
    p.write_text(json.dumps(nb,indent=1,ensure_ascii=False)+'\n')
for f,o,n in C:
    if (f,o) not in cu: print('UNUSED',f,o)
for k,d in P.items():
    for o in d:
        if o not in used and o not in G: print('unused local',k,o)
print('unused global',[o for o in G if o not in used])
