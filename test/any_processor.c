/* Wraps a library of execution providers so that it takes every processor for one of Intel. For tests alone.
 *
 * Some packages list Intel's processors only, though their library runs on others. The library asks ONNX Runtime for
 * the vendor through a table of functions; this one hands it a copy of the table with that function replaced. Positions
 * in the table never change: it is ONNX Runtime's stable interface (OrtApi in onnxruntime_c_api.h).
 *
 * cc -shared -fPIC -DLIBRARY='"/path/of/the/library.so"' -o wrapped.so any_processor.c
 */
#include <dlfcn.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

enum { HARDWARE_DEVICE_VENDOR_ID = 308, FUNCTIONS = 450, INTEL = 0x8086 };

typedef void *Function;
struct ApiBase {
    const Function *(*get_api)(uint32_t version);
    const char *(*get_version)(void);
};
typedef void *(*Create)(const char *, const struct ApiBase *, const void *, void **, size_t, size_t *);
typedef void *(*Release)(void *);

static const struct ApiBase *theirs;
static Function table[FUNCTIONS];

static uint32_t vendor_id(const void *device) {
    (void)device;
    return INTEL;
}

static const Function *get_api(uint32_t version) {
    const Function *api = theirs->get_api(version);
    if (api == NULL)
        return NULL;
    memcpy(table, api, sizeof table);
    table[HARDWARE_DEVICE_VENDOR_ID] = (Function)vendor_id;
    return table;
}

static const char *get_version(void) { return theirs->get_version(); }

static Function find(const char *name) {
    static void *library;
    if (library == NULL)
        library = dlopen(LIBRARY, RTLD_NOW | RTLD_LOCAL);
    return library == NULL ? NULL : dlsym(library, name);
}

void *CreateEpFactories(const char *name, const struct ApiBase *base, const void *logger, void **factories,
                        size_t most, size_t *count) {
    static const struct ApiBase ours = {get_api, get_version};
    theirs = base;
    return ((Create)find("CreateEpFactories"))(name, &ours, logger, factories, most, count);
}

void *ReleaseEpFactory(void *factory) { return ((Release)find("ReleaseEpFactory"))(factory); }
