#!/bin/sh
# How much the five most important numbers of a preset matter, at a quarter of full scale: see docs/sensitivity.md.
#
#   benchmarks/sensitivity.sh pick|insert|distill [options of alohas2r sweep]
#
# Changes one number at a time, three seeds each: 33 runs, several hours on two cores. Stopped or killed, the same command
# goes on. Results are in runs/sensitivity/NAME; --out, --seeds and --workers say otherwise.
# PYTHON names the interpreter; the repository's own environment, or else python3, if it is not set.
set -eu
root=$(CDPATH= cd -- "$(dirname -- "$0")/.." && pwd)
python=${PYTHON:-$root/.venv/bin/python}
command -v "$python" >/dev/null || python=python3
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
name=${1:-}
[ $# -eq 0 ] || shift
sweep() {
  exec "$python" -m alohas2r.cli sweep "$@"
}
case $name in
pick)
  sweep train-teacher --phase pick --sampler each --out "runs/sensitivity/$name" \
    --set total_steps=3e6 --set refine.steps=6.75e6 \
    --set "ppo.target_kl=(0.015,0.008),(0.008,0.004),(0.03,0.015)" \
    --set ppo.discount=0.97,0.95,0.99 \
    --set "ppo.entropy=(0.01,0.003),(0.003,0.001),(0.03,0.01)" \
    --set ppo.num_envs=1024,512,2048 \
    --set refine.discount=0.995,0.99,0.998 "$@"
  ;;
insert)
  sweep train-teacher --phase insert --sampler each --out "runs/sensitivity/$name" \
    --set total_steps=1e6 --set refine.steps=1.25e6 \
    --set "ppo.target_kl=(0.015,0.008),(0.008,0.004),(0.03,0.015)" \
    --set ppo.discount=0.97,0.95,0.99 \
    --set "ppo.entropy=(0.01,0.003),(0.003,0.001),(0.03,0.01)" \
    --set ppo.reward_scale=0.04,0.02,0.08 \
    --set refine.discount=0.995,0.99,0.998 "$@"
  ;;
distill)
  sweep distill --sampler each --out "runs/sensitivity/$name" \
    --set iterations=100 \
    --set "learning_rate=(1e-3,3e-5),(5e-4,3e-5),(2e-3,3e-5)" \
    --set draws=4,1,8 \
    --set average=0.999,0.99,0 \
    --set auxiliary=0.1,0,0.3 \
    --set epochs=4,2,8 "$@"
  ;;
*)
  sed -n '2,8s/^# \{0,1\}//p' "$0" >&2
  exit 2
  ;;
esac
