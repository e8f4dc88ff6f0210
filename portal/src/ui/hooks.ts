import { useEffect, useState } from "react";

/** The time, renewed every `everyMs` while `running`. */
export function useNow(everyMs = 1000, running = true): number {
  const [now, setNow] = useState(() => Date.now());
  useEffect(() => {
    if (!running) return;
    setNow(Date.now());
    const timer = setInterval(() => setNow(Date.now()), everyMs);
    return () => clearInterval(timer);
  }, [everyMs, running]);
  return now;
}

/** `value` as it was when it last stood still for `quietMs`. */
export function useSettled<T>(value: T, quietMs: number): T {
  const [settled, setSettled] = useState(value);
  useEffect(() => {
    const timer = setTimeout(() => setSettled(value), quietMs);
    return () => clearTimeout(timer);
  }, [value, quietMs]);
  return settled;
}

/** The title of the browser's tab while a page is shown. */
export function useTitle(title: string): void {
  useEffect(() => {
    document.title = title ? `${title} · Dflare` : "Dflare";
  }, [title]);
}

/** State that survives a reload and a new login, for as long as the tab lives. */
export function useDraft<T>(key: string, initial: T): [T, (change: Partial<T>) => void, () => void] {
  const name = `dflare.draft.${key}`;
  const [draft, setDraft] = useState<T>(() => {
    const kept = sessionStorage.getItem(name);
    return kept ? { ...initial, ...(JSON.parse(kept) as Partial<T>) } : initial;
  });
  function change(part: Partial<T>): void {
    setDraft((known) => {
      const next = { ...known, ...part };
      sessionStorage.setItem(name, JSON.stringify(next));
      return next;
    });
  }
  function clear(): void {
    sessionStorage.removeItem(name);
    setDraft(initial);
  }
  return [draft, change, clear];
}
