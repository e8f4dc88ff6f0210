/** What can be done to a cluster: stop what happens to it, give it back. */
import { useState } from "react";
import { useMutation, useQueryClient } from "@tanstack/react-query";
import { type Cluster, type Operation } from "../api/client";
import { cancelOperation, releaseCluster } from "../api/queries";
import { Button, Dialog, TextField } from "../ui/controls";
import { ProblemNote } from "../ui/parts";
import { ENDED } from "../ui/states";

export function CancelButton({ operation }: { operation: Operation }) {
  const client = useQueryClient();
  const cancel = useMutation({
    mutationFn: () => cancelOperation(operation.id),
    onSuccess: (fresh) => client.setQueryData(["operation", fresh.id], fresh),
  });
  if (ENDED.has(operation.state) || operation.kind !== "create_cluster") return null;
  return (
    <>
      <ProblemNote error={cancel.error} />
      <Button
        isDisabled={operation.cancel_requested}
        isPending={cancel.isPending}
        onPress={() => cancel.mutate()}
      >
        {operation.cancel_requested ? "Cancelling…" : "Cancel order"}
      </Button>
    </>
  );
}

export function ReleaseButton({ cluster }: { cluster: Cluster }) {
  const [open, setOpen] = useState(false);
  const [typed, setTyped] = useState("");
  const [key] = useState(() => crypto.randomUUID());
  const client = useQueryClient();
  const release = useMutation({
    mutationFn: () => releaseCluster(cluster.project_id, cluster.name, key),
    onSuccess: (operation) => {
      client.setQueryData(["operation", operation.id], operation);
      void client.invalidateQueries({ queryKey: ["cluster"] });
      setOpen(false);
    },
  });
  if (["deleting", "deleted"].includes(cluster.state)) return null;
  return (
    <>
      <Button onPress={() => setOpen(true)}>Release…</Button>
      <Dialog
        title={`Release ${cluster.name}?`}
        role="alertdialog"
        isOpen={open}
        onClose={() => setOpen(false)}
      >
        <p>
          Its {cluster.nodes.length} nodes are switched off, erased and given back. What is on their
          disks is lost. Billing ends with this request.
        </p>
        <TextField
          label={`Type ${cluster.name} to go on`}
          value={typed}
          onChange={setTyped}
          mono
        />
        <ProblemNote error={release.error} />
        <div className="dialog-actions">
          <Button onPress={() => setOpen(false)}>Keep it</Button>
          <Button
            kind="danger"
            isDisabled={typed !== cluster.name}
            isPending={release.isPending}
            onPress={() => release.mutate()}
          >
            Release cluster
          </Button>
        </div>
      </Dialog>
    </>
  );
}
