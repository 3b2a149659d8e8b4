# The gradient baselines on the embedded model; what they wrote, but for the models, is in runs/sft_demo, runs/sft_meta_demo and runs/rtuning_demo.
# Two cores, no accelerator: each folder's args.json has versions, machine and commit. nbs/sft/03_train.ipynb makes the table.
esma_nb_sft
esma_nb_sft_meta
esma_nb_sft_meta --answers --num_epochs 10 --output_dir out/demo-rtuning

# Other ways to teach claims, among them the published one, and answers at the paper's rate: what this prints is runs/sft_flags.txt.
for flags in '--label_interval 1' '--prompt_loss' '--prompt_loss --label_interval 1 --no-meta_chat'; do
    echo "sft_meta $flags: $(esma_nb_sft_meta $flags --output_dir "out/flags $flags" | grep 'iteration.*held-out')"
done
echo "sft --learning_rate 2e-5: $(esma_nb_sft --learning_rate 2e-5 --output_dir out/flags-rate | grep 'iteration.*learned')"

# Made-up events on a real model, one half of them learned: runs/sft_fictional, without records, which would hold the questions.
# data is a folder with fictional_qa/fict_qa.jsonl: a sample of 13 of the events, of which 41 questions are left.
esma_nb_sft --model smollm2 --dataset fictional_qa --data_dir data
