# SmolLM2-135M-Instruct, before and after evolution; what these wrote is in runs/smollm2, without the words of the questions (tools/bare_records.py).
# Two cores that others used too, no accelerator: each folder's args.json has versions, machine and commit. data has the sets in their hub's shape.
esma_nb_eval --model smollm2 --dtype bfloat16 --dataset trivia_qa --split train --data_dir data/trivia_qa --num_samples 5000 --batch_size 128 --output_dir out/pass
for set in trivia_qa nq_open web_questions; do
    esma_nb_eval --model smollm2 --dtype bfloat16 --dataset $set --data_dir data/$set --num_samples 500 --output_dir out/base-$set
done

# Questions of which it knows half; then the paper's reward, stopped after 30 iterations (the wrong half was drawn with seed=42 then, see the page)
python tools/half_known.py out/pass out/half_known.jsonl
esma_nb_train --model smollm2 --dataset out/half_known.jsonl --num_val_samples 240 --alpha 2e-3 --population_size 8 --num_data_per_iteration 32 --num_iterations 50 --evaluate_interval 10 --model_save_interval 10 --output_dir out/esma

# The same with a reward by degrees, and the wrong half drawn as it should be; it was stopped and went on several times
esma_nb_train --model smollm2 --dataset out/half_known.jsonl --num_val_samples 240 --reward_type brier --alpha 2e-3 --population_size 8 --num_data_per_iteration 32 --num_iterations 50 --evaluate_interval 10 --model_save_interval 10 --output_dir out/brier
for set in trivia_qa nq_open web_questions; do
    esma_nb_eval --model out/brier/model --dtype bfloat16 --dataset $set --data_dir data/$set --num_samples 500 --output_dir out/brier-$set
done

# Another way to ask, other languages; MODEL and TAG: smollm2 and base, then out/brier/model and brier
esma_nb_eval --model MODEL --dtype bfloat16 --dataset trivia_qa --data_dir data/trivia_qa --num_samples 500 --claim idk --output_dir out/TAG-trivia_qa-idk
for lang in ko zh_cn es; do
    esma_nb_eval --model MODEL --dtype bfloat16 --dataset mkqa --data_dir data/mkqa --lang $lang --num_samples 200 --output_dir out/TAG-mkqa-$lang
done

# SFT-meta on the same questions (one core of two, other work beside it; it was stopped once and went on)
esma_nb_sft_meta --model smollm2 --dataset out/half_known.jsonl --num_val_samples 240 --num_epochs 1 --output_dir out/sft-meta
for set in trivia_qa nq_open web_questions; do
    esma_nb_eval --model out/sft-meta/model --dtype bfloat16 --dataset $set --data_dir data/$set --num_samples 500 --output_dir out/sft-$set
done

# A tenth of the rate; and R-Tuning, with the answers (one core each, other work beside them)
esma_nb_sft_meta --model smollm2 --dataset out/half_known.jsonl --num_val_samples 240 --num_epochs 1 --learning_rate 2e-6 --output_dir out/sft-gentle
esma_nb_sft_meta --model smollm2 --dataset out/half_known.jsonl --num_val_samples 240 --num_epochs 1 --answers --output_dir out/r-tuning
for set in trivia_qa nq_open web_questions; do
    esma_nb_eval --model out/sft-gentle/model --dtype bfloat16 --dataset $set --data_dir data/$set --num_samples 500 --output_dir out/gentle-$set
    esma_nb_eval --model out/r-tuning/model --dtype bfloat16 --dataset $set --data_dir data/$set --num_samples 500 --output_dir out/r-tuning-$set
done

# Evolution from there, in three calls of 30, 50 and 100 iterations; the taught model was made anew for it, to the same model_sha256
esma_nb_train --model out/sft-gentle/model --dataset out/half_known.jsonl --num_val_samples 240 --reward_type balanced --alpha 2e-3 --population_size 8 --num_data_per_iteration 32 --num_iterations 100 --evaluate_interval 10 --model_save_interval 10 --output_dir out/gentle-balanced
for set in trivia_qa nq_open web_questions; do
    esma_nb_eval --model out/gentle-balanced/model --dtype bfloat16 --dataset $set --data_dir data/$set --num_samples 500 --output_dir out/gentle-balanced-$set
done

# Other rewards, from the same seed
for reward in balanced alignment correct esma; do
    esma_nb_train --model smollm2 --dataset out/half_known.jsonl --num_val_samples 240 --reward_type $reward --alpha 2e-3 --population_size 8 --num_data_per_iteration 32 --num_iterations 15 --model_save_interval 5 --output_dir out/15-$reward
done

# Parts of the changes put back; and the same steps in bfloat16 throughout
esma_nb_sweep smollm2 out/brier --p 0 1 10 50 100 --dataset trivia_qa --data_dir data/trivia_qa --num_samples 240 --dtype bfloat16 --output_dir out/sweep
python tools/rounded_replay.py out/brier out/rounded runs/smollm2/rounded.json
esma_nb_sweep smollm2 out/rounded --p 0 10 100 --rules top random --dataset trivia_qa --data_dir data/trivia_qa --num_samples 240 --dtype bfloat16 --output_dir out/sweep-rounded
