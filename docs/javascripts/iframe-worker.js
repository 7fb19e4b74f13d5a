// Browsers refuse web workers to pages opened from the disk. There, the search runs in a hidden frame instead.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super()
      this.waiting = []
      const frame = document.createElement("iframe")
      frame.hidden = true
      document.body.appendChild(frame)
      this.inside = frame.contentWindow
      const page = frame.contentDocument
      this.inside.postMessage = (data) => this.dispatchEvent(new MessageEvent("message", { data }))
      this.inside.importScripts = (...urls) =>
        urls.reduce(
          (before, next) =>
            before.then(
              () =>
                new Promise((done, failed) => {
                  const script = page.createElement("script")
                  script.src = new URL(next, url).href
                  script.onload = done
                  script.onerror = failed
                  page.body.appendChild(script)
                })
            ),
          Promise.resolve()
        )
      const script = page.createElement("script")
      script.src = url
      script.onload = () => {
        const waiting = this.waiting
        this.waiting = null
        waiting.forEach((data) => this.postMessage(data))
      }
      script.onerror = () => this.dispatchEvent(new Event("error"))
      page.body.appendChild(script)
    }
    postMessage(data) {
      if (this.waiting) this.waiting.push(data)
      else this.inside.dispatchEvent(new MessageEvent("message", { data }))
    }
    terminate() {
      this.inside.frameElement.remove()
    }
  }
}
