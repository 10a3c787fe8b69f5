# One attempt on a job's machine: bash attempt.sh CARGO PLAN
# Installs what it needs, takes the plan over, trains. Ends with 0, with 2 to 7 (the run ends here), with 75 (come back) or with 76
# (come back, though no attempt has begun on this machine), and with nothing else: a node that was ended from outside cannot say
# that the run is over. docs/decisions/0024 has the table, 0072 tells how often 76 comes back.
cargo=$1
plan=$2
export XRUN_ARRIVED=$(date +%s)  # from when on this machine is the run's
stage=$(mktemp -d)  # a disk that is full may make none: then nothing is known
export XRUN_BEGUN=${stage:+$stage/begun}  # made by the first node's attempt, once the run is its own

attempt() {
  set -e
  bash "$cargo/machine_setup.sh" "$cargo"
  ~/xrun/python -P -m xrun.supervisor.arrive "$cargo"
  [ -z "$stage" ] || touch "$stage/ready"
  exec ~/xrun/python -P -m xrun.supervisor.entrypoint "$plan"
}

# A signal is passed on, so that the attempt can save, and waited for: this script lives longer than the attempt.
child= asked= told=
trap 'asked=1 told=1; [ -z "$child" ] || kill -TERM "$child" 2> /dev/null' TERM INT HUP
attempt &
child=$!
[ -z "$asked" ] || kill -TERM "$child"

# A trap ends `wait` early, with a code that is the signal's and not the attempt's.
while
  asked=
  wait "$child"
  code=$?
  [ -n "$asked" ]
do :; done

# Whether this machine has come to nothing by itself: it was not made ready, or its attempt, which is the first node's, never began.
again=75
if [ -n "$stage" ] && [ -z "$told" ] && [ ! -e "$stage/begun" ]; then
  if [ ! -e "$stage/ready" ] || [ "${SKYPILOT_NODE_RANK:-0}" = 0 ]; then again=76; fi
fi
rm -rf "$stage"

case $code in
  0 | [2-7]) exit "$code" ;;
  75) ;;
  *) echo "xrun: the attempt ended with $code, which says nothing about the run: it asks to be started again ($again)." >&2 ;;
esac
exit $again
