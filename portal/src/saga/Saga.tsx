/** An operation as the tree of its steps, live: what is done, what runs, what waits, what failed. */
import type { Operation, Step } from "../api/client";
import { duration, words } from "../ui/format";
import { useNow } from "../ui/hooks";
import { Progress, StatePill } from "../ui/parts";
import { ENDED, moodOf, SIGNS } from "../ui/states";

const TITLES: Record<string, string> = {
  create_cluster: "Create cluster",
  delete_cluster: "Release cluster",
  enrol_nodes: "Enrol nodes",
  grow_pool: "Grow pool",
  shrink_pool: "Shrink pool",
};

/** What the steps of clusters do, in a person's words; others are called by their names. */
const STEP_TITLES: Record<string, string> = {
  "clusters.begin": "Begin",
  "orchestrator.confirm": "Take the held nodes",
  "volumes.grant": "Grant volumes",
  "clusters.start_scheduler": "Start the scheduler",
  "baremetal.prepare": "Prepare servers",
  "network.attach": "Attach to the tenant's network",
  "network.await": "Wait until the fabric has it",
  "baremetal.profile": "Set firmware profile",
  "baremetal.provision": "Write the image",
  "baremetal.start": "Start servers",
  "clusters.await_nodes": "Wait for nodes to register",
  "network.verify": "Verify isolation",
  "orchestrator.hand_over": "Hand over, billing begins",
  "clusters.ready": "Ready",
  "clusters.begin_delete": "Begin",
  "orchestrator.release": "End usage",
  "clusters.stop_scheduler": "Stop the scheduler",
  "volumes.revoke": "Revoke volumes",
  "baremetal.power_off": "Switch servers off",
  "baremetal.erase": "Erase disks",
  "network.detach": "Detach from the network",
  "network.await_drained": "Wait until the fabric is clean",
  "baremetal.free": "Give servers back",
  "orchestrator.end": "End allocations",
  "clusters.deleted": "Released",
};

export function sagaTitle(kind: string): string {
  const title = TITLES[kind] ?? words(kind);
  return title.charAt(0).toUpperCase() + title.slice(1);
}

export function Saga({ operation }: { operation: Operation }) {
  const ended = ENDED.has(operation.state);
  const now = useNow(500, !ended);
  const done = operation.steps.filter((step) => step.state === "done").length;
  const reason = operation.reason && operation.reason !== operation.state ? operation.reason : "";
  return (
    <section className="saga panel" aria-label="Progress" data-state={operation.state}>
      <header className="saga-head">
        <h2>{sagaTitle(operation.kind)}</h2>
        <StatePill state={operation.state} />
        <span className="soft number">
          {done} of {operation.steps.length} steps
        </span>
        <span className="soft number">{elapsed(operation, now)}</span>
        {operation.attempt > 1 && <span className="soft">attempt {operation.attempt}</span>}
        {operation.cancel_requested && !ended && <span className="soft">cancelling</span>}
      </header>
      {reason && <p className="saga-reason">{reason}</p>}
      <ol className="steps">
        {operation.steps.map((step) => (
          <StepRow key={step.index} step={step} now={now} />
        ))}
      </ol>
      <p className="visually-hidden" role="status">
        {sagaTitle(operation.kind)}: {words(operation.state)}
      </p>
    </section>
  );
}

function StepRow({ step, now }: { step: Step; now: number }) {
  const [service, name] = partsOf(step.name);
  const title = STEP_TITLES[`${service}.${name}`] ?? words(name);
  const runs = step.state === "running" || step.state === "undoing";
  return (
    <li className={`step ${moodOf(step.state)}`} data-step={step.name} data-state={step.state}>
      <span className="step-sign" aria-hidden="true">
        {runs ? "" : step.state === "planned" ? "" : SIGNS[moodOf(step.state)]}
      </span>
      <span className="step-name">
        {title}
        <span className="visually-hidden">: {words(step.state)}</span>
      </span>
      <span className="step-service">{service}</span>
      <span className="step-progress">
        {step.total > 1 && step.state !== "planned" && (
          <>
            <Progress
              label={`${title}: nodes done`}
              value={step.done}
              total={step.total}
              mood={step.failed ? "bad" : moodOf(step.state)}
            />
            <span className="number">
              {step.done}/{step.total}
            </span>
          </>
        )}
      </span>
      <span className="step-time number">{stepTime(step, now)}</span>
      {(step.message || step.failed > 0) && (
        <span className={step.failed ? "step-message failed" : "step-message"}>
          {step.failed > 0 && `${step.failed} failed. `}
          {step.message}
        </span>
      )}
    </li>
  );
}

/** `network.attach@1` is step `attach` of service `network`, in its first version. */
function partsOf(name: string): [string, string] {
  const [service = "", rest = name] = name.split(".", 2);
  return [service, rest.split("@")[0] ?? rest];
}

function stepTime(step: Step, now: number): string {
  if (!step.started_at) return "";
  const end = step.finished_at ? Date.parse(step.finished_at) : now;
  return duration((end - Date.parse(step.started_at)) / 1000);
}

function elapsed(operation: Operation, now: number): string {
  const ended =
    operation.finished_at ?? (ENDED.has(operation.state) ? operation.since : undefined);
  const end = ended ? Date.parse(ended) : now;
  return duration((end - Date.parse(operation.created_at)) / 1000);
}
