// The live connection: it is made again, whatever ends it.

import { Problem, events, path } from "./api.js";

const EVERY_S = 1;
const WAITS_S = [1, 2, 4, 8]; // from one try to the next; the last one again and again

/** Follows all streams and experiments. `tell`: overview(facts), problem(error), lost(seconds), token(). */
export class Live {
  constructor(tell) {
    this.tell = tell;
    this.tries = 0;
    this.wake = () => {};
    globalThis.addEventListener("online", () => this.now());
    document.addEventListener("visibilitychange", () => document.hidden || this.now());
  }

  /** Try at once where it waits for the next try. */
  now() {
    this.wake();
  }

  /** Follow for ever. */
  async run() {
    for (;;) {
      try {
        await this.follow();
        throw new Problem({ status: 0 });
      } catch (error) {
        if (!(error instanceof Problem)) throw error;
        if (error.needsToken) {
          this.tell.token(error);
          await this.wait(null);
        } else {
          const seconds = WAITS_S[Math.min(this.tries++, WAITS_S.length - 1)];
          this.tell.lost(error, seconds);
          await this.wait(seconds);
        }
      }
    }
  }

  async follow() {
    for await (const [event, facts] of events(path(["live"], { every: EVERY_S }), new AbortController().signal)) {
      if (event === "overview") {
        this.tries = 0;
        this.tell.overview(facts);
      } else if (event === "problem") {
        const problem = new Problem(facts);
        if (problem.kind === "ending") return;
        this.tell.problem(problem);
      }
    }
  }

  wait(seconds) {
    return new Promise((done) => {
      const timer = seconds === null ? 0 : setTimeout(done, 1000 * seconds);
      this.wake = () => {
        clearTimeout(timer);
        done();
      };
    });
  }
}
