"""What `pipeline.plan` knows, in the order in which a plan is made.

length.py            steps and clips of a run; published_sets.py: sizes of sets that are not there yet
speeds.py            time of a step from measured steps (measured_speeds.yaml)
bench.py             the same from a results file of benchmarks.gpu
activations.py       activation memory from their measured peaks
communication.py     bytes between GPUs and the time that they add
memory.py            states, gradients and buffers under every ZeRO stage
figures.py           all of it as one plan
text.py, units.py    the plan for people
"""
