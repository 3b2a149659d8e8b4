# The embedded recipe, measured every second iteration; what it wrote, but for the model, is in runs/demo.
# Two cores, no accelerator: runs/demo/args.json has versions, machine and commit, runs/demo/metrics.jsonl the seconds of each phase.
esma_nb_train --evaluate_interval 2
