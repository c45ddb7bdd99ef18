// A file that is dropped anywhere on the page goes to the area for files.
addEventListener("dragover", (event) => {
  if (event.dataTransfer?.types.includes("Files")) event.preventDefault();
});
addEventListener("drop", (event) => {
  const input = document.querySelector("#rg-restore input[type=file]");
  const files = event.dataTransfer?.files;
  if (!input || files?.length !== 1 || event.target.closest("#rg-restore")) return;
  event.preventDefault();
  input.files = files;
  input.dispatchEvent(new Event("change", { bubbles: true }));
});
// On a narrow screen the pictures are below the button.
addEventListener("click", (event) => {
  if (!event.target.closest("#rg-run")) return;
  const results = document.querySelector("#rg-results");
  results?.scrollIntoView({ behavior: "smooth", block: "nearest" });
});
