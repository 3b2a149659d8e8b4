"An OpenAI-compatible server on the loopback that misbehaves as it is told"
import json,time
from http.server import BaseHTTPRequestHandler,ThreadingHTTPServer
from threading import Lock,Thread

KEY = 'sk-test-0123456789-this-is-a-secret'

def knows(i): return i%3!=0
def claims_to(i): return i%4!=0

class Server(ThreadingHTTPServer):
    "Knows the capital of country i, says so or not, and has a mood for every attempt at every prompt; a function is a mood that answers by itself."
    daemon_threads = True
    def __init__(self, mood=lambda server, body, n: 'fine', vocabulary=None):
        super().__init__(('127.0.0.1', 0), Handler)
        self.mood,self.seen,self.lock = mood,[],Lock()
        self.vocabulary,self.tokenized = vocabulary,[] # Token ids by word, as its /tokenize tells them; None: it has no such address
        self.url = f'http://127.0.0.1:{self.server_port}/v1'
        Thread(target=self.serve_forever, daemon=True).start()
    def handle_error(self, *_): pass # Clients that are killed
    def close(self):
        self.shutdown()
        self.server_close()

class Handler(BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'
    def log_message(self, *_): pass
    def say(self, status, text, **headers):
        body = text.encode()
        self.send_response(status)
        for k,v in dict({'Content-Type': 'application/json', 'Content-Length': str(len(body))}, **headers).items(): self.send_header(k, v)
        self.end_headers()
        self.wfile.write(body)
    def tokenize(self, q):
        with self.server.lock: self.server.tokenized.append(q)
        tokens = self.server.vocabulary.get(q['prompt'], [7, 8]) if self.server.vocabulary else None
        self.say(404, '{}') if tokens is None else self.say(200, json.dumps(dict(tokens=tokens)))
    def hang_up(self, said=b''):
        self.wfile.write(said)
        self.wfile.flush()
        self.close_connection = True
        self.connection.close()
    def do_GET(self): self.say(404, '{}') # Where a redirect leads
    def do_POST(self):
        q = json.loads(self.rfile.read(int(self.headers['Content-Length'])))
        if self.path.endswith('/tokenize'): return self.tokenize(q)
        text = q['messages'][0]['content']
        with self.server.lock:
            n = sum(t==text for _,t,_ in self.server.seen)
            mood = self.server.mood(self.server, q, n)
            self.server.seen.append((time.monotonic(), text, mood))
        if callable(mood): return mood(self, q)
        key = self.headers['Authorization']
        def error(status, words, **headers): self.say(status, json.dumps(dict(error=dict(message=f'{words} {key}'))), **headers)
        if isinstance(mood, tuple): return error(*mood)
        if mood=='busy': return error(429, 'Slow down', **{'Retry-After': '0.05'})
        if mood=='wait': return error(429, 'Slow down', **{'Retry-After': '1'})
        if mood=='down': return error(500, 'Oops')
        if mood=='slow': time.sleep(4)
        if mood=='broken': return self.say(200, '{"choices": [{"message": {"content": "Yes')
        if mood=='odd': return self.say(200, json.dumps(dict(error=dict(message='upstream'), auth=key)))
        if mood=='dropped': return self.hang_up()
        if mood=='torn': return self.hang_up(b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 500\r\n\r\n{"choices"')
        if mood=='drip':
            self.send_response(200)
            self.send_header('Content-Length', '1000')
            self.end_headers()
            for _ in range(30): time.sleep(.1), self.wfile.write(b' '), self.wfile.flush()
            return
        i = int(text.split('Country ')[1].split('?')[0])
        says = ('Yes' if claims_to(i) else 'No') if 'Do you know' in text else f'City {i}' if knows(i) else f'Perhaps {key}'
        why = 'content_filter' if mood=='filtered' else 'stop'
        self.say(200, json.dumps(dict(model='unkind-1', echo=key, choices=[dict(index=0, message=dict(role='assistant', content=says), finish_reason=why)],
            usage=dict(prompt_tokens=50, completion_tokens=3))))
