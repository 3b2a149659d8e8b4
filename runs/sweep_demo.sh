# The embedded model and what the recipe makes of it (runs/demo; 76 s), patched in 32 ways; what it wrote, but for delta, records and figures, is in runs/sweep_demo.
# Two cores, no accelerator: runs/sweep_demo/args.json has versions, machine and commit.
esma_nb_train --output_dir out/demo
esma_nb_sweep demo out/demo --seeds 0 1 2
