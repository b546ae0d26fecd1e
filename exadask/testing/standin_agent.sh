# The stand-in for an agent: bash standin_agent.sh FOLDER SECONDS EXIT_CODE [--began] BEGAN [--rank] RANK
# Says in FOLDER where it runs, shows there every half second that it lives, and ends as told.
folder=$1 seconds=$2 code=$3
numbers=()
for argument in "${@:4}"; do
  case $argument in --*) ;; *) numbers+=("$argument") ;; esac
done
began=${numbers[0]} rank=${numbers[1]}
if [ "$STANDIN_AGENT" != "$folder/$rank" ]; then
  STANDIN_AGENT=$folder/$rank exec /bin/bash "$0" "$@" # by this mark its processes are found
fi
{
  echo "rank=$rank"
  echo "began=$began"
  echo "pid=$$"
  echo "host=$(hostname)"
  env | grep -E '^(SLURMD_NODENAME|PBS_NODENUM|FLUX_URI|CONFORMANCE_|EXADASK_|FAKE_BATCH_)'
} >"$folder/$rank.$$.part"
touch "$folder/$rank.alive"
mv "$folder/$rank.$$.part" "$folder/$rank.$$.begun"
echo "stand-in $rank begins"
for ((half = 0; half < 2 * seconds; half++)); do
  touch "$folder/$rank.alive"
  sleep 0.5
done
echo "stand-in $rank ends with exit code $code"
exit "$code"
