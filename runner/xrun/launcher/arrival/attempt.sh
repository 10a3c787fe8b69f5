# One attempt on a job's machine: bash attempt.sh CARGO PLAN
# Installs what it needs, takes the plan over, trains. Ends with 0, with 2 to 7 (the run ends here) or with 75 (come back), and
# with nothing else: a node that was ended from outside cannot say that the run is over. docs/decisions/0024 has the table.
cargo=$1
plan=$2
export XRUN_ARRIVED=$(date +%s)  # from when on this machine is the run's

attempt() {
  set -e
  bash "$cargo/machine_setup.sh" "$cargo"
  ~/xrun/python -P -m xrun.supervisor.arrive "$cargo"
  exec ~/xrun/python -P -m xrun.supervisor.entrypoint "$plan"
}

# A signal is passed on, so that the attempt can save, and waited for: this script lives longer than the attempt.
child= asked=
trap 'asked=1; [ -z "$child" ] || kill -TERM "$child" 2> /dev/null' TERM INT HUP
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

case $code in
  0 | [2-7]) exit "$code" ;;
  75) ;;
  *) echo "xrun: the attempt ended with $code, which says nothing about the run: it asks to be started again (75)." >&2 ;;
esac
exit 75
