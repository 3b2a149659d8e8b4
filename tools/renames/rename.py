"Rename identifiers over notebooks, tests and tools: names in code (f-string expressions too), and names in backticks in prose, comments and docstrings"
import io,json,re,sys,tokenize
from pathlib import Path

def fstring(s, table, only): # Expressions inside braces
    def brace(m):
        return '{' + re.sub(r'(?<![\w\'"])([A-Za-z_]\w*)\b(?![\'"])', lambda n: table.get(n[1], n[1]), m[1]) + '}'
    return re.sub(r'\{([^{}]*)\}', brace, s)

def ticks(s, table): # `name`, `name(...)`, `Class.name`
    def inside(m): return '`' + re.sub(r'[A-Za-z_]\w*', lambda n: table.get(n[0], n[0]), m[1]) + '`'
    return re.sub(r'(?<!`)`([^`\n]+)`(?!`)', inside, s)

def code(s, table):
    magic = re.search(r'^\s*(!|%)', s, re.M)
    try: toks = list(tokenize.generate_tokens(io.StringIO(s).readline))
    except Exception:
        return s if magic else re.sub(r'\b[A-Za-z_]\w*\b', lambda n: table.get(n[0], n[0]), s)
    lines = s.splitlines(keepends=True); edits = []
    for t in toks:
        new = None
        if t.type==tokenize.NAME: new = table.get(t.string)
        elif t.type==tokenize.STRING:
            new = fstring(t.string, table, None) if re.match(r'[rR]?[fF]', t.string) else t.string
            if t.string.lstrip('rbfRBF').startswith('"') : new = ticks(new, table)
        elif t.type==tokenize.COMMENT and not t.string.startswith('#|'): new = ticks(t.string, table)
        if new is not None and new!=t.string: edits.append((t.start, t.end, new))
    for (a,b),(c,d),new in reversed(edits):
        if a==c: lines[a-1] = lines[a-1][:b]+new+lines[a-1][d:]
        else: lines[a-1:c] = (lines[a-1][:b]+new+lines[c-1][d:]).splitlines(keepends=True)
    return ''.join(lines)

def page(p, table):
    nb = json.loads(p.read_text(encoding='utf-8')); o = json.dumps(nb)
    for c in nb['cells']:
        s = ''.join(c['source'])
        s = code(s, table) if c['cell_type']=='code' else ticks(s, table)
        c['source'] = s.splitlines(keepends=True)
    if json.dumps(nb)!=o: p.write_text(json.dumps(nb, indent=1, ensure_ascii=False)+'\n', encoding='utf-8'); return True

def main(table, where=('nbs/**/*.ipynb', 'tests/*.py', 'tools/*.py'), skip=()):
    n = 0
    for pattern in where:
        for p in sorted(Path('.').glob(pattern)):
            if p.name in skip or '_proc' in p.parts or 'checkpoints' in str(p): continue
            if p.suffix=='.ipynb': n += bool(page(p, table))
            else:
                s = p.read_text(encoding='utf-8'); t = code(s, table)
                if t!=s: p.write_text(t, encoding='utf-8'); n += 1
    print(n, 'files')
