"""Draw docs/images/explorer.png and explorer-map.png, its first section: the default model's
explorer in Chromium, half a minute.

  python docs/explorer_picture.py [--model MODEL] [--to FILE.png] [--width 1160] [--dark]
"""

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

MINUTE = 60_000
TRACED = 820  # pixels, to where the first section ends


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model")
    parser.add_argument("--to", default=str(Path(__file__).parent / "images/explorer.png"))
    parser.add_argument("--width", type=int, default=1160)
    parser.add_argument("--dark", action="store_true")
    args = parser.parse_args()
    chosen = ["--model", args.model] if args.model else []
    command = [sys.executable, "-m", "rome_mlx", "explore", "--no-browser", *chosen]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        address = server.stdout.readline().strip()
        with sync_playwright() as play:
            browser = play.chromium.launch(executable_path=shutil.which("chromium"),
                                           args=["--no-sandbox", "--hide-scrollbars"])
            page = browser.new_page(viewport={"width": args.width, "height": 900},
                                    color_scheme="dark" if args.dark else "light")
            page.set_default_timeout(10 * MINUTE)
            page.goto(address)
            used(page)
            page.screenshot(path=args.to, full_page=True)
            page.screenshot(path=Path(args.to).with_stem(Path(args.to).stem + "-map"),
                            full_page=True, clip={"x": 0, "y": 0, "width": args.width,
                                                  "height": TRACED})
            browser.close()
    finally:
        server.terminate()
        server.wait()


def used(page: Page) -> None:
    """A fact traced, a cell held, another answer written, and both models asked."""
    page.click("#trace button >> nth=0")
    page.locator("#trace .status", has_text="every cell was run").wait_for()
    page.locator("#map").press("Enter")
    page.locator("#cell", has_text="95 % interval").wait_for()
    page.click("#edit button >> nth=0")
    page.locator("#checked tbody tr").nth(3).wait_for()
    page.click("#ask button >> nth=0")
    page.locator("#edited .word").first.wait_for()
    page.locator("#ask .cancel:disabled").wait_for()


if __name__ == "__main__":
    main()
