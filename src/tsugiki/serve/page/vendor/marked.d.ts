/** What the page uses of marked; `marked.js` has it. */

export interface Token {
  type: string;
  raw: string;
  text?: string;
  tokens?: Token[];
  [field: string]: any;
}
export function lexer(text: string, options?: { gfm?: boolean; breaks?: boolean }): Token[];
