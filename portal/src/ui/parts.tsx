/** Small things that every page is made of. */
import type { ReactNode } from "react";
import { Link as RouterLink } from "@tanstack/react-router";
import { LoggedOut, Problem, Unreachable } from "../api/problem";
import { words } from "./format";
import { moodOf, SIGNS } from "./states";

export function StatePill({ state, label }: { state: string; label?: string }) {
  const mood = moodOf(state);
  return (
    <span className={`pill ${mood}`} data-state={state}>
      <span className="pill-sign" aria-hidden="true">
        {SIGNS[mood]}
      </span>
      {label ?? words(state)}
    </span>
  );
}

export function PageHead(props: {
  title: ReactNode;
  detail?: ReactNode;
  children?: ReactNode;
}) {
  return (
    <header className="page-head">
      <div>
        <h1>{props.title}</h1>
        {props.detail && <p className="soft">{props.detail}</p>}
      </div>
      <div className="actions">{props.children}</div>
    </header>
  );
}

/** Nothing to show, and what to do about it; `alone` where the page has no other heading. */
export function Empty(props: {
  title: string;
  children: ReactNode;
  action?: ReactNode;
  alone?: boolean;
}) {
  const Heading = props.alone ? "h1" : "h2";
  return (
    <div className="empty">
      <Heading>{props.title}</Heading>
      <p className="soft">{props.children}</p>
      {props.action}
    </div>
  );
}

/** A refusal, with what to do next. Silence about what passes by itself: the shell says that. */
export function ProblemNote({ error, title }: { error: unknown; title?: string }) {
  if (!error || error instanceof Unreachable || error instanceof LoggedOut) return null;
  const document = error instanceof Problem ? error.document : null;
  return (
    <div className="problem" role="alert">
      <strong>{title ?? document?.title ?? "Something failed"}</strong>
      <span>{sentence(document?.detail ?? String(error))}</span>
      {document?.next_step && <span className="next-step">{document.next_step}</span>}
    </div>
  );
}

export function sentence(text: string): string {
  const begun = text.charAt(0).toUpperCase() + text.slice(1);
  return /[.!?]$/.test(begun) ? begun : `${begun}.`;
}

export function Loading({ what }: { what: string }) {
  return (
    <div className="loading" role="status">
      <span className="spinner" aria-hidden="true" />
      Reading {what}…
    </div>
  );
}

export function Progress(props: { label: string; value: number; total: number; mood: string }) {
  const share = props.total === 0 ? 0 : Math.round((100 * props.value) / props.total);
  return (
    <progress className={`progress ${props.mood}`} aria-label={props.label} value={share} max={100}>
      {share}%
    </progress>
  );
}

export function Facts({ items }: { items: [string, ReactNode][] }) {
  return (
    <dl className="facts">
      {items.map(([name, value]) => (
        <div key={name}>
          <dt>{name}</dt>
          <dd>{value}</dd>
        </div>
      ))}
    </dl>
  );
}

export function Command({ children }: { children: string }) {
  return <code className="command">{children}</code>;
}

export { RouterLink as Link };
