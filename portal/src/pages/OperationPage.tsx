/** One operation, by its id: what commands and audit records link to. */
import { useQuery } from "@tanstack/react-query";
import { useParams } from "@tanstack/react-router";
import { operation } from "../api/queries";
import { Saga, sagaTitle } from "../saga/Saga";
import { useTitle } from "../ui/hooks";
import { Command, Loading, PageHead, ProblemNote } from "../ui/parts";

export function OperationPage() {
  const { operation: id } = useParams({ from: "/operations/$operation" });
  const { data, error } = useQuery(operation(id));
  useTitle(data ? sagaTitle(data.kind) : "Operation");
  if (!data) return error ? <ProblemNote error={error} /> : <Loading what="the operation" />;
  return (
    <>
      <PageHead title={sagaTitle(data.kind)} detail={data.id} />
      <Saga operation={data} />
      <Command>{`dflare operation trace ${data.id}`}</Command>
    </>
  );
}
