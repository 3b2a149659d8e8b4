# What each option of a step buys on the embedded model, in ten ways and with the same seeds: short runs of a small population, where a step is mostly noise.
# One thread a run, on two cores that were shared with other work. tools/optimizers.py makes runs/optimizers/runs.csv of the folders.
# Every way goes about as far as the paper's step, but for the last ones, from `anchor` on: ranks of 16 vary .32 times as much as z-scores; twelve steps with a momentum of .9
# add up to 55 steps; Adam's alpha is how far the paper's first step moves a weight (4.2/864); a linear schedule of twelve steps is .54 of its start on average.
for seed in 0 1 2; do
    while read -r name flags; do
        esma_nb_train --population_size 16 --num_data_per_iteration 48 --num_iterations 12 --seed $seed $flags --output_dir "out/optimizers/$name-$seed" </dev/null
    done <<-'ways'
	plain
	momentum --optimizer momentum --alpha .0043
	adam --optimizer adam --alpha .0048
	alpha_falls --alpha_schedule linear --alpha .037
	sigma_falls --sigma_schedule linear --sigma .0185
	ranks --shaping ranks --alpha .063
	unmirrored --no-mirrored
	anchor --weight_decay 2.5
	clip --max_update_norm 150
	twice --alpha .04
	ways
done
