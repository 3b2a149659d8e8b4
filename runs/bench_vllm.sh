# In the environment of constraints-vllm.txt, on 2 idle cores; SmolLM2-135M-Instruct is a folder made with `save_model(*load_model('smollm2', 'float32'), 'SmolLM2-135M-Instruct')`
bench="esma_nb_bench --model SmolLM2-135M-Instruct --dataset nq_open --data_dir ../shared/data/nq_open --repeats 1"
$bench --baselines bfloat16 same default rademacher vllm_eager vllm --dtype bfloat16 --json runs/bench_vllm_32_bfloat16.json
$bench --baselines naive default vllm_eager vllm --dtype float32 --json runs/bench_vllm_32_float32.json
$bench --baselines default vllm_eager vllm --dtype bfloat16 --num_data_per_iteration 256 --json runs/bench_vllm_256_bfloat16.json
$bench --baselines default vllm_eager vllm --dtype float32 --num_data_per_iteration 256 --json runs/bench_vllm_256_float32.json
$bench --baselines bfloat16 --dtype bfloat16 --population_size 2 --num_data_per_iteration 256 --json runs/bench_naive_256_bfloat16.json
