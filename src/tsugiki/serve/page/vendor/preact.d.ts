/** What the page uses of Preact and htm; `preact.js` has it. */

export interface VNode {
  type: unknown;
  props: Record<string, any>;
}
export type Child = VNode | string | number | boolean | null | undefined | Child[];
export interface Ref<T> {
  current: T;
}
export type SetState<T> = (value: T | ((before: T) => T)) => void;

export function html(strings: TemplateStringsArray, ...values: any[]): VNode;
export function render(tree: Child, parent: Element): void;
export function useState<T>(start: T | (() => T)): [T, SetState<T>];
export function useReducer<T, A>(reduce: (state: T, action: A) => T, start: T): [T, (action: A) => void];
export function useRef<T = any>(start?: T): Ref<T>;
export function useMemo<T>(make: () => T, on: unknown[]): T;
export function useEffect(act: () => void | (() => void), on?: unknown[]): void;
export function useLayoutEffect(act: () => void | (() => void), on?: unknown[]): void;
export function useErrorBoundary(act: (error: unknown) => void): [unknown, () => void];
