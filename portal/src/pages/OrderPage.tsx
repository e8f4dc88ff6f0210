/** Ordering a cluster: the form, and beside it what it would get and cost. */
import { useEffect, useRef, useState } from "react";
import { keepPreviousData, useMutation, useQuery, useQueryClient } from "@tanstack/react-query";
import { useNavigate } from "@tanstack/react-router";
import type { ClusterOrder } from "../api/client";
import { isPassing } from "../api/problem";
import { nodeTypes, orderCluster, projects, quote } from "../api/queries";
import { useDraft, useSettled, useTitle } from "../ui/hooks";
import { Command, Empty, Loading, PageHead, ProblemNote } from "../ui/parts";
import { EMPTY, orderOf, type Draft } from "./order";
import { OrderForm } from "./OrderForm";
import { QuotePanel } from "./QuotePanel";

const QUIET_MS = 300;

export function OrderPage() {
  useTitle("Order a cluster");
  const owners = useQuery(projects);
  const offers = useQuery(nodeTypes);
  const [draft, change, clear] = useDraft<Draft>("order", EMPTY);
  useDefaults(draft, change, owners.data, offers.data);
  const order = orderOf(draft);
  const asked = useSettled(JSON.stringify(order), QUIET_MS);
  const quoted = useQuery({
    ...quote(draft.project, JSON.parse(asked) as ClusterOrder | null),
    placeholderData: keepPreviousData,
  });
  const isCurrent = asked === JSON.stringify(order) && !quoted.isPlaceholderData;
  const sending = useOrder(clear);

  if (owners.data?.length === 0) {
    return (
      <Empty alone title="You belong to no project">
        Clusters belong to a project. Somebody who runs your organization gives you a role in one:{" "}
        <Command>dflare role bind</Command>
      </Empty>
    );
  }
  if (!owners.data || !offers.data) {
    const error = owners.error ?? offers.error;
    return error ? <ProblemNote error={error} /> : <Loading what="what can be ordered" />;
  }
  if (offers.data.length === 0) {
    return (
      <Empty alone title="Nothing can be ordered yet">
        No site was loaded. An operator does that: <Command>dflare site apply site.yaml</Command>
      </Empty>
    );
  }
  const isReady = order !== null && draft.name !== "" && isCurrent && quoted.isSuccess;
  return (
    <>
      <PageHead title="Order a cluster" detail="Nothing is ordered before you press the button" />
      <form
        className="order"
        onSubmit={(event) => {
          event.preventDefault();
          if (isReady) sending.order(draft.project, order);
        }}
      >
        <OrderForm draft={draft} change={change} projects={owners.data} offers={offers.data} />
        <QuotePanel
          draft={draft}
          isComplete={order !== null}
          quote={quoted.data}
          error={isCurrent ? quoted.error : null}
          isCurrent={isCurrent}
          isReady={isReady}
          sending={sending}
        />
      </form>
    </>
  );
}

/** Choose what there is only one of. */
function useDefaults(
  draft: Draft,
  change: (part: Partial<Draft>) => void,
  owners: { id: string }[] | undefined,
  offers: { site_id: string; name: string }[] | undefined,
): void {
  useEffect(() => {
    const part: Partial<Draft> = {};
    const only = owners?.length === 1 ? owners[0] : undefined;
    if (owners && !owners.some((one) => one.id === draft.project)) part.project = only?.id ?? "";
    const first = offers?.[0];
    const known = offers?.some(
      (one) => one.name === draft.nodeType && one.site_id === draft.site,
    );
    if (first && !known) Object.assign(part, { nodeType: first.name, site: first.site_id });
    const differs = Object.entries(part).some(([key, value]) => draft[key as keyof Draft] !== value);
    if (differs) change(part);
  });
}

export interface Sending {
  order: (project: string, order: ClusterOrder) => void;
  stop: () => void;
  isPending: boolean;
  /** Nobody answers; it is tried again under the same key, which cannot order twice. */
  isWaiting: boolean;
  error: unknown;
}

function useOrder(onOrdered: () => void): Sending {
  const client = useQueryClient();
  const navigate = useNavigate();
  const stopped = useRef(false);
  const [isStopped, setStopped] = useState(false);
  const mutation = useMutation({
    mutationFn: (ask: { project: string; order: ClusterOrder; key: string }) =>
      orderCluster(ask.project, ask.order, ask.key),
    retry: (_, error) => !stopped.current && isPassing(error),
    onSuccess: (operation, { project, order }) => {
      client.setQueryData(["operation", operation.id], operation);
      void client.invalidateQueries({ queryKey: ["clusters"] });
      onOrdered();
      void navigate({
        to: "/clusters/$project/$cluster",
        params: { project, cluster: order.name },
      });
    },
  });
  const isPending = mutation.isPending && !isStopped;
  return {
    order: (project, order) => {
      stopped.current = false;
      setStopped(false);
      mutation.mutate({ project, order, key: crypto.randomUUID() });
    },
    stop: () => {
      stopped.current = true;
      setStopped(true);
    },
    isPending,
    isWaiting: isPending && mutation.failureCount > 0,
    error: mutation.error,
  };
}
